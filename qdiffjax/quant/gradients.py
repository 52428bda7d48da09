"""Low-precision gradients: quantizers that act on the way back only."""

import functools

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import calibration, rounding
from qdiffjax.quant._granularity import Shape, compute_dtype
from qdiffjax.quant.formats import IntFormat
from qdiffjax.quant.ste import check_random, fake_quant_codes


def quantize_gradient(
    x: Array,
    uniform: Array | None = None,
    *,
    format: IntFormat,
    scale_shape: Shape | None = None,
) -> Array:
    """Return x unchanged; quantize the cotangent on its way back.

        x_bar = Q(u),   scale = absmax(u) / qmax per granule

    with stochastic rounding if `uniform` is given (then E x_bar = u: Gupta et al. 2015),
    nearest otherwise. The map is not linear in u, so this is a `jax.custom_vjp` and forward
    mode raises: use it for training only.

    Args:
      x: real array [*shape].
      uniform: numbers in [0, 1) [*shape], or None.
      format: codes for the cotangent, signed; its bits may be traced. Not binary.
      scale_shape: granularity of the cotangent's scale; None = per tensor.

    Raises:
      TypeError: x is not real.
      ValueError: a format without both signs and zero, or a uniform of another shape.
    """
    compute_dtype(x)
    if uniform is not None:
        check_random("uniform", uniform, x)
    if format.is_binary or not format.signed:
        raise ValueError(f"format: got {format}, expected signed with at least 2 bits.")
    qmin, qmax = (jnp.asarray(q).astype(jnp.float32) for q in (format.qmin, format.qmax))
    shape = calibration.per_tensor(x) if scale_shape is None else scale_shape
    return _quantize_gradient(shape, x, qmin, qmax, uniform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantize_gradient(scale_shape, x, qmin, qmax, uniform):
    del scale_shape, qmin, qmax, uniform
    return x


def _quantize_gradient_fwd(scale_shape, x, qmin, qmax, uniform):
    del scale_shape
    return x, (qmin, qmax, uniform)


def _quantize_gradient_bwd(scale_shape, residuals, cotangent):
    qmin, qmax, uniform = residuals
    low, high = calibration.minmax_range(cotangent, scale_shape)
    scale, _ = calibration.scale_from_range(low, high, qmin=qmin, qmax=qmax, symmetric=True)
    round_fn = rounding.nearest_even
    if uniform is not None:
        round_fn = functools.partial(rounding.stochastic, uniform=uniform)
    x_bar = fake_quant_codes(cotangent, scale, None, qmin, qmax, round_fn=round_fn)
    return x_bar, None, None, None


_quantize_gradient.defvjp(_quantize_gradient_fwd, _quantize_gradient_bwd)
