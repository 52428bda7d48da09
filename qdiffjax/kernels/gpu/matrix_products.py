"""Matrix products on Hopper; what the kernels do not take goes the way of XLA."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels import chip, reference, xla
from qdiffjax.kernels.gpu import few_tokens, products, tiles
from qdiffjax.kernels.operands import Native, Summed, native, rounded_codes, widened
from qdiffjax.quant import E4M3FN, E5M2, ActivationGrid, IntFormat, QTensor

LEAST_TOKENS = 128  # below, most of a block would be padding
# What the kernels' compiler has been seen to take; other functions follow as a pass of their own.
FUSED = (jax.nn.relu, jax.nn.silu, jax.nn.gelu)


def matmul(x, w: QTensor, *, activation: ActivationGrid | None, bias, act_fn, out_dtype) -> Array:
    """Multiply as `reference.matmul`.

    Kernels take codes of 8 bits or 4 (both operands integers, or both the same 8-bit float) for at
    least 128 tokens, with one zero point for all of x and none for w, K and N multiples of 64; and
    x bfloat16 alone, not rounded, for at most 64 tokens. In all of them every scale belongs to
    a token or an output channel.
    """
    rest = {"bias": bias, "act_fn": act_fn, "out_dtype": out_dtype}
    if w.scale.shape[0] == 1 and w.zero_point is None:
        if activation is None and not isinstance(x, QTensor):
            stripe = _stripe(x, w)
            if stripe is not None:
                return _few(x, w, stripe, **rest)
            if native(w).zero is None:
                return _reals(x, w, **rest)
        elif takes(x, w, activation) and math.prod(x.shape[:-1]) >= LEAST_TOKENS:
            a = native(x) if activation is None else rounded_codes(x, activation, (1,))
            if tile_of(x.shape[0], w.shape[1], w.shape[0]) is not None:
                sums = w.sums if isinstance(w, Summed) else None
                return of_codes(a, native(w).values, w.scale, sums=sums, **rest)
    return xla.matmul(x, w, activation=activation, **rest)


def takes(x, w: QTensor, activation: ActivationGrid | None) -> bool:
    """Whether the tensor cores multiply such codes: w symmetric, x with one zero point at most."""
    left = x if activation is None else activation
    is_mixed = isinstance(left.format, IntFormat) != isinstance(w.format, IntFormat)
    if is_mixed or native(w).zero is not None:
        return False
    if not isinstance(left.format, IntFormat):
        return left.format == w.format and w.format in (E4M3FN, E5M2)
    is_shifted = left.zero_point is not None or not left.format.signed
    return not is_shifted or (left.scale is not None and jnp.size(left.scale) == 1)


def of_codes(
    a: Native, w: Array, scale, *, bias, act_fn, out_dtype, sums: Array | None = None,
    taps: products.Taps | None = None,
):  # fmt: skip
    """Return act(s_a s_w sum (a - z_a) w + bias) [M, N] for codes a [M', K] and w [taps * K, N].

    Rows are padded to whole blocks. Sums of w [1, N], where a has a zero point, cost a pass over
    it, as does its transpose where it is not `precision.stored`.
    """
    values, w = widened(a.values), widened(w)
    n, k = w.shape[1], values.shape[1]
    m = values.shape[0] if taps is None else values.shape[0] // taps.outer * taps.inner
    tile = tile_of(m, n, k)
    assert tile is not None
    missing = -m % tile.cluster[0] if taps is None else 0
    values = jnp.pad(values, ((0, missing), (0, 0))) if missing else values
    fused = act_fn is None or act_fn in FUSED
    y = products.product(
        values, w.T, _vectors(a, w, sums, scale, bias, m, missing),
        act_fn=act_fn if fused and act_fn is not None else _same,
        out_dtype=out_dtype if fused else jnp.float32, tile=tile, taps=taps, cores=chip.num_cores(),
    )[:m]  # fmt: skip
    return y if fused else act_fn(y).astype(out_dtype)


def tile_of(m: int, n: int, k: int) -> tiles.Tile | None:
    """Return how a product is cut, or None for sizes that no block divides."""
    return tiles.choose(m, n, k, chip.num_cores())


def _vectors(a: Native, w, sums, scale, bias, m: int, missing: int) -> products.Vectors:
    column = scale.reshape(-1).astype(jnp.float32)
    row: Any = a.scale.reshape(-1).astype(jnp.float32)
    column = jnp.broadcast_to(column, (w.shape[1],))
    if row.size == 1:
        column, row = column * row, None
    else:
        row = jnp.pad(jnp.repeat(row, m // row.size), (0, missing))
    shift = None
    if a.zero is not None:
        sums = jnp.sum(w, 0, dtype=jnp.int32) if sums is None else sums[0]
        shift = a.zero.reshape(-1)[0] * sums
    return products.Vectors(row, column, shift, None if bias is None else bias.astype(jnp.float32))


def _stripe(x, w: QTensor) -> few_tokens.Stripe | None:
    is_code = isinstance(w.format, IntFormat) and (w.format.signed or w.format.bits < 8)
    if not is_code or x.dtype != jnp.bfloat16 or x.shape[0] > few_tokens.MOST_TOKENS:
        return None
    return few_tokens.choose(x.shape[0], w.shape[1], w.shape[0], w.codes.dtype)


def _few(x, w: QTensor, stripe: few_tokens.Stripe, *, bias, act_fn, out_dtype) -> Array:
    codes, n = native(w).values, w.shape[1]
    scale = jnp.broadcast_to(w.scale.reshape(-1).astype(jnp.float32), (n,))
    fused = act_fn is None or act_fn in FUSED
    y = few_tokens.product(
        x, codes.T, scale, None if bias is None else bias.astype(jnp.float32),
        act_fn=act_fn if fused and act_fn is not None else _same,
        out_dtype=out_dtype if fused else jnp.float32, stripe=stripe,
    )  # fmt: skip
    return y if fused else act_fn(y).astype(out_dtype)


def _reals(x, w: QTensor, *, bias, act_fn, out_dtype) -> Array:
    """Multiply real tokens by codes by XLA, which reads the codes [N, K] as they lie in
    memory.
    """
    # Else a sampler's scan would keep the real weights of all its steps, which are what codes are
    # there to save.
    x, codes = jax.lax.optimization_barrier((x, w.codes.T))
    values = native(dataclasses.replace(w, codes=codes)).values.astype(x.dtype)
    last = (((1,), (1,)), ((), ()))
    y = jax.lax.dot_general(x, values, last, preferred_element_type=jnp.float32)
    return reference.finish(w.scale.astype(jnp.float32) * y, bias, act_fn, out_dtype)


def _same(y):
    return y
