"""AdaRound: learn for each weight whether it rounds up or down (Nagel et al. 2020)."""

import functools

import jax
import jax.numpy as jnp

from qdiffjax._checks import POSITIVE, check_count, check_number, checked
from qdiffjax._typing import Array
from qdiffjax.quant.formats import IntFormat, check_equal_steps
from qdiffjax.quant.granularity import check_like, compute_dtype, expand, in_steps, saturated
from qdiffjax.quant.qtensor import check_arguments, zero_like

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma and zeta of the paper


def rectified_sigmoid(logits: Array) -> Array:
    """Return how far up to round [*shape]: h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1).

    Nagel et al. 2020, eq. 23 (after Louizos et al. 2018): it reaches 0 and 1 at V = -+2.3979,
    and has no gradient beyond.
    """
    width = STRETCH_HIGH - STRETCH_LOW
    return jnp.clip(jax.nn.sigmoid(logits) * width + STRETCH_LOW, 0, 1)


def adaround_init(x: Array, scale: Array) -> Array:
    """Return the logits V [*shape] at which soft rounding is the identity.

        h(V) = v - floor(v),   v = x / scale,   so   V = log((h + 0.1) / (1.1 - h))

    Args:
      x: weights [*shape].
      scale: positive steps in units of x [*groups].

    Returns:
      float32 (float64 for float64 x).

    Raises:
      ValueError: as `fake_quant`.
    """
    x, scale = check_arguments(x, scale)
    v = in_steps(x, scale.astype(compute_dtype(x)))
    part = v - jnp.floor(v)
    return jnp.log((part - STRETCH_LOW) / (STRETCH_HIGH - part))


def fake_quant_adaround(
    x: Array,
    scale: Array,
    logits: Array,
    zero_point: Array | None = None,
    *,
    format: IntFormat,
    hard: bool = False,
) -> Array:
    """Round each x down or up as its logit says.

        x_hat = scale * (clip(floor(x / scale) + h(V) + zero_point, qmin, qmax) - zero_point)

    Nagel et al. 2020, eq. 22; hard replaces h by [V >= 0], as at deployment. VJP for u:

        logits_bar = u * scale * h'(V)   where qmin <= code <= qmax before the clip, else 0
        scale_bar  = sum u * x_hat / scale
        x_bar      = 0

    x and the zero point are constants, since floor is, and so are the logits once hard; the
    scale is fixed in the paper.

    Args:
      x: weights [*shape].
      scale: positive steps in units of x [*groups].
      logits: V [*shape], from `adaround_init`.
      zero_point: integers [*groups], or None for symmetric.
      format: integer codes; bits may be traced. Not binary.
      hard: whether to round to the grid; static.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: as `fake_quant`; logits of another shape; a format without an integer grid.
    """
    x, scale = check_arguments(x, scale, zero_point, format)
    check_equal_steps(format, "rounding up or down needs integer codes")
    check_like("logits", logits, x, "begin with adaround_init(x, scale)")
    scale, logits = (jnp.asarray(a).astype(compute_dtype(x)) for a in (scale, logits))
    up = (logits >= 0).astype(scale.dtype) if hard else rectified_sigmoid(logits)
    zero = zero_like(zero_point, scale, x.shape)
    ends = (expand(jnp.asarray(q).astype(scale.dtype), x.shape) for q in (format.qmin, format.qmax))
    zero, low, high = jax.lax.stop_gradient((zero, *ends))
    code = jnp.floor(jax.lax.stop_gradient(in_steps(x, scale))) + up
    low, high = low - zero, high - zero
    # Not jnp.clip, which would halve the gradient of a code that is exactly an end.
    code = jnp.where(code < low, low, jnp.where(code > high, high, code))
    return saturated(expand(scale, x.shape) * code, x.dtype)


WARMUP = functools.partial(check_number, least=0, below=1)


@checked(beta=POSITIVE)
def adaround_regularizer(logits: Array, beta: Array | float) -> Array:
    """Return the price of being undecided: sum of 1 - |2 h(V) - 1|^beta, a scalar.

    Nagel et al. 2020, eq. 24: flat in the middle for a large beta, so that logits move freely;
    at a small one it drives each h to 0 or 1. No derivative is taken in beta.
    """
    h = rectified_sigmoid(logits)
    beta = jax.lax.stop_gradient(jnp.asarray(beta).astype(h.dtype))
    return jnp.sum(1 - jnp.abs(2 * h - 1) ** beta)


@checked(
    num_steps=check_count,
    warmup=functools.partial(check_number, least=0, below=1),
    start=POSITIVE,
    end=POSITIVE,
)
def adaround_schedule(
    step: Array | int,
    num_steps: int,
    *,
    warmup: float = 0.2,
    start: float = 20.0,
    end: float = 2.0,
) -> tuple[Array, Array]:
    """Return the weight (0 or 1) and beta of the regularizer at a training step, float32 scalars.

        weight = [step >= warmup num_steps]
        beta   = end + (start - end) * (1 - (step - warmup num_steps) / ((1 - warmup) num_steps))

    clipped to end..start. Nagel et al. 2020, section 4, say that beta is annealed; the linear
    form, 20 -> 2 and the first fifth without regularizer are those of BRECQ's code (Li et al.
    2021), where its factor is 0.01.

    Raises:
      ValueError: num_steps below 1, or a warmup outside 0..1.
    """
    past = jnp.asarray(step).astype(jnp.float32) - warmup * num_steps
    left = jnp.clip(1 - past / ((1 - warmup) * num_steps), 0, 1)
    return (past >= 0).astype(jnp.float32), end + (start - end) * left
