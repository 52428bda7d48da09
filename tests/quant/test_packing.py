"""Packed storage against Python's own integers, and through every tool that moves arrays."""

import functools
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax.quant import IntFormat, QTensor, dequantize, quantize
from qdiffjax.quant.fake_quant_variants import quantize_block
from qdiffjax.quant.formats.blocks import NVFP4, nvfp4_tensor_scale
from qdiffjax.quant.formats.codebooks import CodebookFormat
from qdiffjax.quant.formats.floats import BF16, E2M1, E3M2, E4M3FN, TF32
from qdiffjax.quant.formats.logarithmic import E8M0, LogFormat
from qdiffjax.quant.packing import (
    PackedQTensor,
    footprint,
    pack,
    pack_codes,
    unpack,
    unpack_codes,
)

FORMATS = {
    **{f"int{b}": IntFormat(b) for b in range(1, 9)},
    **{f"uint{b}": IntFormat(b, signed=False) for b in (1, 3)},
    "full int5": IntFormat(5, narrow=False),
    "int11": IntFormat(11),
    "int16": IntFormat(16, narrow=False),
    "uint16": IntFormat(16, signed=False),
    "e2m1": E2M1,
    "e3m2": E3M2,
    "e4m3fn": E4M3FN,
    "bf16": BF16,
    "tf32": TF32,
    "log2": LogFormat(4),
    "signed log2": LogFormat(5, signed=True),
    "codebook": CodebookFormat((-1.0, -0.3, 0.0, 0.2, 1.0)),
}
_pack, _unpack = jax.jit(pack, static_argnames="scale_format"), jax.jit(unpack)
_quantize = jax.jit(quantize, static_argnames="format")


def _random_codes(rng, bits, signed, shape):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    width = next(w for w in (8, 16, 32) if bits <= w)
    return rng.integers(low, high, shape).astype(f"{'' if signed else 'u'}int{width}")


def _q(format=None, affine=False, seed=0):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(6, 8)).astype(np.float32))
    format = format or IntFormat(3, signed=not affine)
    zero_point = jnp.full((6, 1), 3, jnp.int32) if affine else None
    return _quantize(x, jnp.full((6, 1), 0.3, jnp.float32), zero_point, format=format)


def _assert_same(a, b):
    """Same tree, static fields included, and the same bits and dtypes."""
    chex.assert_trees_all_equal_structs(a, b)
    chex.assert_trees_all_equal(a, b, strict=True)


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, 13, 16, 19, 32])
@pytest.mark.parametrize("signed", [True, False])
def test_stream_is_the_integer_with_the_codes_as_digits(bits, signed):
    codes = _random_codes(np.random.default_rng(bits), bits, signed, (2, 11))
    packed = jax.jit(pack_codes, static_argnums=1)(codes, bits)
    for row, got in zip(codes, np.asarray(packed), strict=True):
        number = sum((int(c) % 2**bits) << (i * bits) for i, c in enumerate(row))
        assert bytes(got) == number.to_bytes(-(-11 * bits // 8), "little")
    back = jax.jit(unpack_codes, static_argnums=(1, 2, 3))(packed, bits, signed, codes.shape)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize(("shape", "bytes_"), [((0,), 0), ((1,), 1), ((3, 0), 0), ((3, 1), 3)])
def test_empty_and_single_codes_pack(shape, bytes_):
    packed = pack_codes(jnp.full(shape, -3, jnp.int8), 3)
    assert packed.size == bytes_
    assert np.all(np.asarray(unpack_codes(packed, 3, True, shape)) == -3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_code_of_every_format_survives_packing_bit_for_bit(name):
    format = FORMATS[name]
    levels = jnp.asarray(format.levels()[:: max(1, len(format.levels()) // 64)], jnp.float32)
    scale = jnp.full((1,), 0.7, jnp.float32)
    q = QTensor(jax.jit(format.encode)(levels), scale, None, format)
    p = _pack(q)
    assert p.data.dtype == np.uint8
    assert p.data.size == -(-levels.size * format.bits // 8)
    _assert_same(_unpack(p), q)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 5, 11]), st.booleans(), st.integers(0, 40))
def test_packing_is_invertible(seed, bits, signed, n):
    codes = _random_codes(np.random.default_rng(seed), bits, signed, (40,))
    packed = np.asarray(_pack_40(jnp.asarray(codes), bits))
    np.testing.assert_array_equal(_unpack_40(packed, bits, signed), codes)
    # A prefix of the codes is a prefix of the stream, but for the bits that fill the last byte.
    whole = n * bits // 8
    assert packed[:whole].tobytes() == _stream(codes[:n], bits)[:whole]


_pack_40 = jax.jit(pack_codes, static_argnums=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unpack_40(packed, bits, signed):
    return unpack_codes(packed, bits, signed, (40,))


def _stream(codes, bits):
    number = sum((int(c) % 2**bits) << (i * bits) for i, c in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("affine", [False, True])
def test_footprint_is_the_bytes_that_the_leaves_take(affine):
    q = _q(affine=affine)
    size = footprint(q)
    leaves = jax.tree.leaves(_pack(q))
    assert size.total == sum(leaf.nbytes for leaf in leaves)
    assert size[:3] == (6 * 8 * 3 // 8, 6 * 4, 6 * 4 * affine)
    assert footprint(jax.eval_shape(lambda: q)) == size  # shapes suffice


def test_footprint_of_an_mx_block_is_four_and_a_quarter_bits():
    x = jnp.ones((4, 64), jnp.float32)
    q = _quantize(x, jnp.full((4, 2), 0.25, jnp.float32), format=E2M1)
    size = footprint(q, scale_format=E8M0)
    assert 8 * size.total / size.num_elements == 4 + 8 / 32
    p = _pack(q, scale_format=E8M0)
    assert size.total == sum(leaf.nbytes for leaf in jax.tree.leaves(p))
    assert p.scale.dtype == np.uint8
    _assert_same(_unpack(p), q)


def test_scales_that_their_format_does_not_hold_are_refused():
    with pytest.raises(ValueError, match="scale: got numbers that are not in ScaleFormat"):
        pack(_q(), scale_format=E8M0)
    q = _quantize(jnp.ones((6, 8)), jnp.ones((6, 1)), format=E2M1)
    with pytest.raises(ValueError, match="scale: got float64, expected float32"):
        pack(q, scale_format=E8M0)


def test_nvfp4_packs_into_its_bytes_and_one_float32_for_the_tensor():
    x = jnp.asarray(np.random.default_rng(2).standard_t(2, (8, 64)), jnp.float32).at[0].set(0)
    q = jax.jit(lambda x: quantize_block(x, NVFP4))(x)
    top = nvfp4_tensor_scale(jnp.max(jnp.abs(x)), E2M1)
    p = _pack(q, scale_format=E4M3FN, tensor_scale=top)
    assert (p.scale.dtype, p.tensor_scale.dtype) == (np.uint8, np.float32)
    exact = np.asarray(q.scale, np.float64) / float(top)
    np.testing.assert_array_equal(p.scale, exact.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(p)) == x.size // 2 + x.size // 16 + 4
    size = footprint(q, scale_format=E4M3FN, has_tensor_scale=True)
    assert size.total == x.size // 2 + x.size // 16 + 4
    _assert_same(_unpack(p), q)


def test_tensor_scales_that_do_not_fit_are_refused():
    q = quantize_block(jnp.linspace(-1, 3, 32, dtype=jnp.float32)[None], NVFP4)
    with pytest.raises(ValueError, match="expected a scalar, and the format of the scales"):
        pack(q, tensor_scale=jnp.ones(()))
    with pytest.raises(ValueError, match="expected positive finite steps"):
        pack(q, scale_format=E4M3FN, tensor_scale=jnp.zeros(()))
    with pytest.raises(ValueError, match="scale: got numbers that are not in FloatFormat"):
        pack(q, scale_format=E4M3FN, tensor_scale=jnp.full((), 0.0007))


def test_packing_commutes_with_vmap():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    q = jax.jit(jax.vmap(lambda x: quantize(x, jnp.full(1, 0.3), format=IntFormat(3))))(x)
    p = jax.jit(jax.vmap(pack))(q)
    assert (p.data.shape, p.shape, p.ndim) == ((3, 2), (5,), 1)
    _assert_same(jax.jit(jax.vmap(unpack))(p), q)


def test_tree_map_reaches_the_arrays_and_keeps_the_format():
    for tree in (_q(affine=True), _pack(_q(affine=True))):
        numpy = jax.tree.map(np.asarray, {"kernel": tree})["kernel"]
        assert numpy.format == tree.format
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(numpy))
        _assert_same(numpy, tree)


@pytest.mark.parametrize("affine", [False, True])
def test_checkpoints_restore_quantized_trees_bit_for_bit(affine, tmp_path):
    import orbax.checkpoint as ocp

    q = _q(affine=affine)
    tree = {"plain": q, "packed": _pack(q), "mx": _pack(_mx(), scale_format=E8M0)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", tree)
        checkpointer.wait_until_finished()
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), tree
        )
        restored = checkpointer.restore(tmp_path / "params", target)
    assert isinstance(restored["packed"], PackedQTensor)
    _assert_same(restored, tree)


def _mx():
    return _quantize(
        jnp.ones((2, 32), jnp.float32), jnp.full((2, 1), 0.5, jnp.float32), format=E2M1
    )


def test_trees_go_to_a_mesh_of_one_device():
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for tree in (_q(affine=True), _pack(_q(affine=True))):
        there = jax.device_put(tree, sharding)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(there))
        _assert_same(there, tree)


FOUR_WAYS = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from qdiffjax.quant import IntFormat, dequantize, quantize
from qdiffjax.quant.packing import pack, unpack

assert len(jax.devices()) == 4
rows = NamedSharding(jax.make_mesh((4,), ("x",)), P("x"))
x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
q = jax.jit(lambda x: quantize(x, jnp.full((8, 2), 0.3), format=IntFormat(3)))(x)
p = jax.jit(pack)(q)
there = jax.device_put((q, p), rows)
for whole, leaf in zip(jax.tree.leaves((q, p)), jax.tree.leaves(there), strict=True):
    shards = {s.device: s.data.shape for s in leaf.addressable_shards}
    assert len(shards) == 4
    assert set(shards.values()) == {(whole.shape[0] // 4, *whole.shape[1:])}, shards
decoded, again = jax.jit(lambda q, p: (dequantize(q), unpack(p)))(*there)
assert decoded.sharding.is_equivalent_to(rows, 2), decoded.sharding
np.testing.assert_array_equal(decoded, jax.jit(dequantize)(q))
np.testing.assert_array_equal(again.codes, q.codes)
np.testing.assert_array_equal(again.scale, q.scale)
"""


def test_codes_and_scales_are_split_over_four_devices():
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", FOUR_WAYS], env=env, check=True, timeout=120)


@pytest.mark.parametrize("bits", [0, 33, 4.0])
def test_widths_that_do_not_exist_are_refused(bits):
    with pytest.raises(ValueError, match=r"expected an int in 1\.\.32"):
        pack_codes(jnp.zeros(3, jnp.int8), bits)


def test_codes_that_are_no_codes_are_refused():
    with pytest.raises(TypeError, match="codes: got float32, expected integers"):
        pack_codes(jnp.zeros(3, jnp.float32), 4)
    with pytest.raises(ValueError, match="codes: got a scalar"):
        pack_codes(jnp.zeros((), jnp.int8), 4)
    with pytest.raises(ValueError, match=r"packed: got uint8 \(2,\), expected uint8 \(3,\)"):
        unpack_codes(jnp.zeros(2, jnp.uint8), 4, True, (5,))


def test_scalars_pack():
    q = quantize(jnp.array(0.6), jnp.array(0.5), format=IntFormat(4))
    assert float(dequantize(_unpack(_pack(q)))) == 0.5
