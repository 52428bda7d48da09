"""Codes in as many bits as they need, and what a quantized array costs to store."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_numbers, check_type, require
from qdiffjax._typing import Array
from qdiffjax.quant import qtensor, rounding
from qdiffjax.quant.formats import Format, check_static_integer, is_binary
from qdiffjax.quant.granularity import check_positive, concrete_all

MAX_BITS = 32


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("data", "scale", "zero_point", "tensor_scale"),
    meta_fields=("format", "shape", "scale_format"),
)
@dataclasses.dataclass(frozen=True)
class PackedQTensor:
    """A QTensor whose codes are one dense stream of bits. A pytree; the rest is static.

    Attributes:
      data: bytes of `pack_codes` over all codes in row-major order, uint8 [ceil(n bits / 8)].
      scale: as in the QTensor, or its codes in scale_format [*groups].
      zero_point: as in the QTensor.
      format: the codes that exist.
      shape: of the array that is represented.
      scale_format: in which the scales are stored, or None for as they were.
      tensor_scale: what the decoded scales are multiplied by, float32 [], or None.
    """

    data: Array
    scale: Array
    zero_point: Array | None
    format: Format
    shape: tuple[int, ...]
    scale_format: Format | None = None
    tensor_scale: Array | None = None

    @property
    def ndim(self) -> int:
        """Rank of the array that is represented."""
        return len(self.shape)


class Footprint(NamedTuple):
    """Bytes of a quantized array in packed storage, part by part.

    Attributes:
      codes, scales, zero_points: bytes; the scale of the tensor is one of the scales.
      num_elements: of the array that is represented.
    """

    codes: int
    scales: int
    zero_points: int
    num_elements: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.codes + self.scales + self.zero_points


def pack_codes(codes: Array, bits: int) -> Array:
    """Write the low bits of each code one after the other, the least significant first.

        stream = sum_i (codes_i mod 2^bits) 2^(i bits),   little-endian in bytes

    Negative codes become their two's complement. The last byte is filled up with zeros.

    Args:
      codes: integers [*batch, n].
      bits: of each code, 1..32, static.

    Returns:
      uint8 [*batch, ceil(n bits / 8)].

    Raises:
      TypeError: codes are not integers.
      ValueError: bits out of range, or codes without an axis.
    """
    check_static_integer("bits", bits, MAX_BITS)
    check_numbers("codes", codes, least_size=0)
    is_integer, remedy = jnp.issubdtype(codes.dtype, jnp.integer), "call format.encode first"
    require(
        is_integer, "codes", got=codes.dtype, expected="integers", remedy=remedy, error=TypeError
    )
    require(
        codes.ndim, "codes", got="a scalar", expected="at least one axis", remedy="reshape to (1,)"
    )
    places = jnp.arange(bits, dtype=jnp.uint32)
    is_set = jnp.right_shift(_column(codes), places.reshape([1] * codes.ndim + [bits])) & 1
    stream = is_set.astype(jnp.uint8).reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return jnp.packbits(stream, axis=-1, bitorder="little")


def unpack_codes(packed: Array, bits: int, signed: bool, shape: tuple[int, ...]) -> Array:
    """Read codes [*shape] back, bit for bit; the inverse of `pack_codes`.

    Args:
      packed: uint8 [*batch, ceil(n bits / 8)].
      bits: of each code, 1..32, static.
      signed: whether codes are two's complement.
      shape: (*batch, n).

    Returns:
      Integers [*shape], of the smallest dtype of 8, 16 or 32 bits that holds them.

    Raises:
      ValueError: bits out of range, or a number of bytes that does not fit the shape.
    """
    check_static_integer("bits", bits, MAX_BITS)
    check_numbers("packed", packed, least_size=0)
    expected = (*shape[:-1], -(-shape[-1] * bits // 8))
    require(
        packed.shape == expected and packed.dtype == jnp.uint8, "packed",
        got=f"{packed.dtype} {packed.shape}",
        expected=f"uint8 {expected} for codes {shape} of {bits} bits",
        remedy="pass the shape and width that were packed",
    )  # fmt: skip
    stream = jnp.unpackbits(packed, axis=-1, count=shape[-1] * bits, bitorder="little")
    weights = jnp.left_shift(jnp.ones(bits, jnp.uint32), jnp.arange(bits, dtype=jnp.uint32))
    weights = weights.reshape([1] * len(shape) + [bits])
    unsigned = jnp.sum(stream.reshape(*shape, bits).astype(jnp.uint32) * weights, -1, jnp.uint32)
    width = next(w for w in (8, 16, 32) if bits <= w)
    if not signed:
        return unsigned.astype(f"uint{width}")
    # Moved to the top and back, the sign bit fills the rest.
    top = jax.lax.bitcast_convert_type(unsigned << (32 - bits), jnp.int32)
    return (top >> (32 - bits)).astype(f"int{width}")


def pack(
    q: qtensor.QTensor, *, scale_format: Format | None = None, tensor_scale: Array | None = None
) -> PackedQTensor:
    """Pack the codes of q densely; the binary format {-1, +1} takes one bit.

    Args:
      q: codes [*shape].
      scale_format: to store the scales in, for scales that are numbers of it, such as the E8M0
        of MX blocks; None keeps them as they are.
      tensor_scale: a number of which they are multiples: scale = tensor_scale * a number of
        scale_format, as NVFP4's are with E4M3FN and `nvfp4_tensor_scale`. None = 1.

    Raises:
      ValueError: concrete scales that are not such numbers, or a tensor_scale without
        scale_format.
    """
    check_type("q", q, qtensor.QTensor, remedy="quantize(x, scale, format=format)")
    if tensor_scale is not None:
        tensor_scale = jnp.asarray(tensor_scale).astype(jnp.float32)
        require(
            scale_format is not None and tensor_scale.ndim == 0, "tensor_scale",
            got=f"shape {tensor_scale.shape} with scale_format {scale_format}",
            expected="a scalar, and the format of the scales in units of it",
            remedy="such as scale_format=E4M3FN",
        )  # fmt: skip
        check_positive(tensor_scale)
    scale = q.scale if scale_format is None else _encode_scale(q.scale, scale_format, tensor_scale)
    codes = q.codes > 0 if is_binary(q.format) else q.codes
    data = pack_codes(codes.astype(q.format.storage_dtype).reshape(-1), q.format.bits)
    return PackedQTensor(data, scale, q.zero_point, q.format, q.shape, scale_format, tensor_scale)


def unpack(p: PackedQTensor) -> qtensor.QTensor:
    """Return the QTensor that was packed, bit for bit."""
    check_type("p", p, PackedQTensor, remedy="pack(q)")
    dtype = p.format.storage_dtype
    is_sign = is_binary(p.format)
    is_signed = dtype.kind == "i" and not is_sign
    codes = unpack_codes(p.data, p.format.bits, is_signed, (math.prod(p.shape),)).astype(dtype)
    codes = (2 * codes - 1 if is_sign else codes).reshape(p.shape)
    scale = p.scale
    if p.scale_format is not None:
        scale = _decode_scale(p.scale, p.scale_format, p.tensor_scale)
    return qtensor.QTensor(codes, scale, p.zero_point, p.format)


def footprint(
    q: qtensor.QTensor, *, scale_format: Format | None = None, has_tensor_scale: bool = False
) -> Footprint:
    """Count the bytes that `pack` would need.

        M = ceil(n b / 8) + bytes(scale) + bytes(zero_point) [+ 4 with a tensor_scale]

    Survey, eq. 13, M(b) ~ b / 32, counts codes alone. Shapes suffice: q may hold
    ShapeDtypeStructs, as from jax.eval_shape.
    """
    check_type("q", q, qtensor.QTensor, remedy="quantize(x, scale, format=format)")
    n = math.prod(q.shape)
    scale_dtype = q.scale.dtype if scale_format is None else scale_format.storage_dtype
    return Footprint(
        codes=-(-n * int(q.format.bits) // 8),
        scales=_num_bytes(q.scale.shape, scale_dtype) + 4 * has_tensor_scale,
        zero_points=0 if q.zero_point is None else _num_bytes(q.zero_point.shape, jnp.int32),
        num_elements=n,
    )


def _num_bytes(shape, dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _column(codes):
    """Return the codes [*shape, 1] as uint32, negative ones as two's complement."""
    wide = codes if codes.dtype == jnp.uint32 else codes.astype(jnp.int32)
    return jax.lax.bitcast_convert_type(wide, jnp.uint32)[..., None]


def _encode_scale(scale, format, tensor_scale):
    is_float32, expected = scale.dtype == jnp.float32, f"float32 to store as {format}"
    require(is_float32, "scale", got=scale.dtype, expected=expected, remedy="cast it first")
    codes = _scale_codes(scale, format, tensor_scale)
    require(
        concrete_all(lambda c: _decode_scale(c, format, tensor_scale) == scale, codes), "scale",
        got=f"numbers that are not in {format} (times tensor_scale)",
        expected="ones that it holds exactly",
        remedy="round them before quantizing, or pack without scale_format",
    )  # fmt: skip
    return codes


@functools.partial(jax.jit, static_argnames="format")
def _scale_codes(scale, format, tensor_scale):
    """Round to codes: the quotient may miss the number whose product with tensor_scale it was."""
    ratio = scale if tensor_scale is None else scale / tensor_scale
    return format.encode(format.round(ratio, rounding.nearest_even))


@functools.partial(jax.jit, static_argnames="format")
def _decode_scale(codes, format, tensor_scale):
    scale = format.decode(codes, jnp.float32)
    return scale if tensor_scale is None else scale * tensor_scale
