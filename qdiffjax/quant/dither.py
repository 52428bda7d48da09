"""Subtractive dither: the one rounding whose error knows nothing of the signal."""

import functools

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant._granularity import compute_dtype, expand, inverse
from qdiffjax.quant.formats import Format, IntFormat
from qdiffjax.quant.qtensor import check_arguments
from qdiffjax.quant.ste import fake_quant


def fake_quant_subtractive(
    x: Array, scale: Array, zero_point: Array | None, dither: Array, *, format: Format
) -> Array:
    """Add noise, round to the grid, and take the same noise away again.

        x_hat = scale * (clip(round(v + d) + zero_point, qmin, qmax) - zero_point - d)

    with v = x / scale, d = dither. For d uniform on [-1/2, 1/2] and v in the window of
    `fake_quant`, nothing saturates and e = x_hat - x is uniform on [-scale / 2, scale / 2],
    independent of x: mean 0, variance scale^2 / 12 (Schuchman 1964; Lipshitz, Wannamaker,
    Vanderkooy 1992, theorem 1). The result is in general not on the grid: whoever decodes must
    know d, so that there is no `quantize` for it. Triangular noise is uniform modulo one step
    and gives the same law, but already saturates half a step inside the window.

    VJP for a cotangent u, as `fake_quant` with round(v + d) for round(v), and dither a constant:

        x_bar     = u                               inside,  0                         outside
        scale_bar = sum u * (round(v + d) - d - v)  inside,  u * (q - zero_point - d)  outside

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups].
      zero_point: integers [*groups], or None for symmetric.
      dither: noise in steps [*shape]; see `rounding.rectangular_like`.
      format: integer codes; bits may be traced. Not binary.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: as `fake_quant`; a dither of another shape; a format that is not an integer
        grid or is binary (a step must be the same everywhere).
    """
    x, scale, dither = jnp.asarray(x), jnp.asarray(scale), jnp.asarray(dither)
    _check(x, dither, format)
    check_arguments(x, scale, zero_point, format)
    scale, noise = (a.astype(compute_dtype(x)) for a in (scale, dither))
    v = x.astype(scale.dtype) * expand(inverse(scale), x.shape)
    round_fn = functools.partial(rounding.dithered, dither=noise)
    # In steps, so that one product comes last: s q - s d would be fused or not, at a whim.
    codes = fake_quant(v, jnp.ones_like(scale), zero_point, format=format, round_fn=round_fn)
    return (expand(scale, x.shape) * (codes - noise)).astype(x.dtype)


def _check(x, dither, format):
    if not isinstance(format, IntFormat) or format.is_binary:
        raise ValueError(
            f"format: got {format!r}, expected IntFormat of 2 bits or more, or unsigned; only a "
            "grid of equal steps can be dithered and undithered."
        )
    if dither.shape != x.shape:
        raise ValueError(
            f"dither: got shape {dither.shape} for x of shape {x.shape}, expected the same; "
            "draw it with rectangular_like(key, x)."
        )
