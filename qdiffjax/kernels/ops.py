"""Products of quantized operands: arguments checked, shapes flattened, the path chosen."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, check_numbers, checked, require
from qdiffjax._typing import Array
from qdiffjax.kernels import xla
from qdiffjax.kernels.backends import Path, default
from qdiffjax.kernels.derivatives import (
    Operands,
    holds_arrays,
    simulated_conv,
    simulated_matmul,
    with_derivative,
)
from qdiffjax.kernels.operands import check_format, cropped, mark_missing, missing
from qdiffjax.quant import (
    ActivationGrid,
    Format,
    IntFormat,
    QTensor,
    check_arguments,
    fake_quant,
)


def matmul(
    x: Array | QTensor,
    w: QTensor,
    *,
    activation: ActivationGrid | None = None,
    bias: Array | None = None,
    act_fn: Callable | None = None,
    out_dtype=jnp.float32,
    path: Path | None = None,
) -> Array:
    """Return act(x_hat w_hat + bias) [..., N], codes multiplied as codes.

        x_hat = s_x (q_x - z_x),  w_hat = s_w (q_w - z_w)

    What is rounded inside and NaN has no code; results that would sum it are NaN.

    Args:
      x: codes, or real numbers [..., K]: rounded inside the kernel if `activation` says how, left
        real otherwise (weight-only).
      w: codes [K, N]; scale [1, 1], [1, N] (output channels) or [K / g, N] (groups of inputs).
      activation: how a real x becomes codes.
      bias: [N], or None.
      act_fn: elementwise function of the result, or None.
      out_dtype: of the result; sums, scales and bias are int32 and float32 before.
      path: implementation; None takes the platform's.

    Raises:
      ValueError: shapes that do not fit, a format that no kernel multiplies.
    """
    check_weight(w, 2)
    check_operand(x, activation, least_rank=1)
    require(
        x.shape[-1] == w.shape[0], "x, w", got=(x.shape, w.shape),
        expected="x [..., K] and w [K, N]", remedy="transpose one of them",
    )  # fmt: skip
    operands = Operands(_flattened(x, x.shape[-1]), w, activation, bias)
    of_path = (path or default()).matmul

    def kernel(x, w, activation, bias, act_fn, out_dtype):
        rest = {"activation": activation, "bias": bias, "act_fn": act_fn, "out_dtype": out_dtype}
        y = of_path(x, w, **rest)
        return y if activation is None else mark_missing(y, missing(x, (1,)), act_fn)

    y = _multiplied(kernel, simulated_matmul, operands, act_fn, out_dtype)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _multiplied(kernel, simulation, operands: Operands, act_fn, out_dtype) -> Array:
    """Run a kernel with its derivative; an act_fn that holds arrays of its own follows it."""
    if holds_arrays(act_fn):
        return act_fn(_multiplied(kernel, simulation, operands, None, jnp.float32)).astype(
            out_dtype
        )

    def run(operands: Operands):
        return kernel(**operands._asdict(), act_fn=act_fn, out_dtype=out_dtype)

    return with_derivative(run, functools.partial(simulation, act_fn, out_dtype), operands)


@checked(feature_group_count=check_count)
def conv(
    x: Array | QTensor,
    w: QTensor,
    *,
    activation: ActivationGrid | None = None,
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    bias: Array | None = None,
    act_fn: Callable | None = None,
    out_dtype=jnp.float32,
    path: Path | None = None,
) -> Array:
    """Return act(x_hat * w_hat + bias) [B, *out, N]: a convolution of codes.

    Args:
      x: codes (one scale, or one for each sample), or real numbers [B, *space, K], see `matmul`;
        an image, or one to four axes of space.
      w: codes [*window, K / groups, N]; scale [1, ..., 1] or [1, ..., N]; symmetric.
      activation: how a real x becomes codes; the range of a dynamic one is that of all of x.
      strides: of the window; None is 1.
      padding: "SAME", "VALID" or (low, high) of each axis, negative where it crops; with the code
        of 0.0.
      rhs_dilation: of the window.
      feature_group_count: groups of channels.
      bias: [N], or None.
      act_fn: elementwise function of the result, or None.
      out_dtype: of the result.
      path: implementation; None takes the platform's.

    Raises:
      ValueError: shapes that do not fit, a format that no kernel multiplies, a weight with zero
        points or with scales that vary along what is summed.
    """
    check_weight(w, 3, 4, 5, 6)
    check_operand(x, activation, least_rank=3)
    _check_window(w.ndim - 2, strides, padding, rhs_dilation)
    require(
        all(n == 1 for n in w.scale.shape[:-1]) and w.zero_point is None, "w",
        got=f"scales {w.scale.shape}, zero point {w.zero_point is not None}",
        expected="one scale for each output channel [1, ..., N] and no zero point",
        remedy="quantize it symmetrically, by output channel",
    )  # fmt: skip
    require(
        x.ndim == w.ndim and x.shape[-1] == w.shape[-2] * feature_group_count
        and w.shape[-1] % feature_group_count == 0, "x, w, feature_group_count",
        got=(x.shape, w.shape, feature_group_count), expected="NHWC and HWIO of that many groups",
        remedy="transpose, or count the groups anew",
    )  # fmt: skip
    space = "HWDT"[: x.ndim - 2]
    window = {
        "window_strides": (1,) * len(space) if strides is None else tuple(strides),
        "padding": padding, "rhs_dilation": rhs_dilation,
        "feature_group_count": feature_group_count,
        "dimension_numbers": (f"N{space}C", f"{space}IO", f"N{space}C"),
    }  # fmt: skip
    of_path = (path or default()).conv if x.ndim == 4 else xla.conv

    def kernel(x, w, activation, bias, act_fn, out_dtype):
        values, grid, inside = cropped(x, activation, window)
        run = of_path if math.prod(values.shape) else xla.conv  # nothing may be left of the image
        y = run(values, w, activation=grid, window=inside, bias=bias, act_fn=act_fn,
                out_dtype=out_dtype)  # fmt: skip
        return y if activation is None else mark_missing(y, _missing_taps(x, w, window), act_fn)

    simulation = functools.partial(simulated_conv, window)
    return _multiplied(kernel, simulation, Operands(x, w, activation, bias), act_fn, out_dtype)


def _missing_taps(x: Array, w: QTensor, window: dict) -> Array:
    """Return whether the window of each result [B, *out, N or 1] meets NaN in its group."""
    groups = window["feature_group_count"]
    by_group = x.reshape(*x.shape[:-1], groups, -1)
    image, _, window = cropped(missing(by_group, (-1,))[..., 0], None, window)
    dilation = window["rhs_dilation"] or (1,) * (x.ndim - 2)
    padding = window["padding"]
    if not isinstance(padding, str):
        padding = ((0, 0), *padding, (0, 0))
    met = jax.lax.reduce_window(
        image, False, jax.lax.bitwise_or, (1, *w.shape[:-2], 1), (1, *window["window_strides"], 1),
        padding, window_dilation=(1, *dilation, 1),
    )  # fmt: skip
    return met if groups == 1 else jnp.repeat(met, w.shape[-1] // groups, -1)


def rounded(
    x: Array, scale: Array, zero_point: Array | None = None, *, format: Format,
    path: Path | None = None,
) -> Array:  # fmt: skip
    """Return Q(x) [*shape] in one pass over memory: `quant.fake_quant`, with its derivative."""
    check_arguments(x, scale, zero_point, format)

    def run(operands):
        return (path or default()).rounded(*operands, format=format)

    def simulation(operands):
        return fake_quant(*operands, format=format)

    return with_derivative(run, simulation, (x, jnp.asarray(scale), zero_point))


def stochastic_codes(
    x: Array, scale: Array, bits: Array, *, format: IntFormat, path: Path | None = None
) -> Array:
    """Return codes [*shape] of x, rounded at random without bias inside the range.

        clip(floor(v + u), qmin, qmax),   v = x / scale,   u = (upper 24 of bits) / 2^24

    The same bits give the same codes on every path; their dtype is `format.storage_dtype`.

    Args:
      x: real array [*shape].
      scale: positive steps [*groups]; symmetric.
      bits: uint32 [*shape], for example of jax.random.bits.
      format: the codes that exist; static, not binary.
      path: implementation; None takes the platform's.

    Raises:
      ValueError: bits of another shape or dtype, or the binary format.
    """
    check_numbers("bits", bits, least_size=0)
    bits = jnp.asarray(bits)
    require(
        bits.shape == jnp.shape(x) and bits.dtype == jnp.uint32, "bits",
        got=f"{bits.dtype} {bits.shape} for x of shape {jnp.shape(x)}",
        expected="uint32 of the same shape",
        remedy="draw them with jax.random.bits(key, x.shape, jnp.uint32)",
    )  # fmt: skip
    require(
        isinstance(format, IntFormat) and not format.is_binary, "format", got=format,
        expected="integers of at least 2 bits", remedy="such as IntFormat(8)",
    )  # fmt: skip
    return (path or default()).stochastic_codes(x, scale, bits, format=format)


def check_weight(w: QTensor, *ndims: int) -> None:
    """Raise unless w is a quantized array of one of these ranks."""
    require(
        isinstance(w, QTensor), "w", got=type(w).__name__, expected="a QTensor",
        remedy="see quant.quantize", error=TypeError,
    )  # fmt: skip
    check_format(w.format)
    ranks = " or ".join(map(str, ndims))
    require(w.ndim in ndims, "w", got=f"shape {w.shape}", expected=f"{ranks} axes",
            remedy="reshape before quantizing")  # fmt: skip


def _check_window(num_axes: int, strides, padding, rhs_dilation) -> None:
    """Raise unless strides and dilation are a count an axis, and padding a word or a pair an axis.

    None is 1 on every axis.
    """
    for name, counts in (("strides", strides), ("rhs_dilation", rhs_dilation)):
        if counts is not None:
            require(len(counts) == num_axes, name, got=counts, expected=f"{num_axes} counts",
                    remedy="one for each axis of the window")  # fmt: skip
            for count in counts:
                check_count(name, count)
    is_word = isinstance(padding, str) and padding.upper() in ("SAME", "VALID", "SAME_LOWER")
    is_pairs = isinstance(padding, tuple | list) and len(padding) == num_axes and all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in padding
    )  # fmt: skip
    require(is_word or is_pairs, "padding", got=repr(padding),
            expected=f"'SAME', 'VALID' or (low, high) of {num_axes} axes",
            remedy="such as ((1, 1), (1, 1))")  # fmt: skip


def check_operand(x, activation: ActivationGrid | None, *, least_rank: int) -> None:
    """Raise unless x is codes, or real with or without a way to round it."""
    if not isinstance(x, QTensor):
        check_numbers("x", x, least_size=0, least_rank=least_rank, finite=False)
        require(jnp.issubdtype(x.dtype, jnp.floating), "x", got=f"an array of {x.dtype}",
                expected="floating-point numbers, or codes as a QTensor",
                remedy="x.astype(jnp.float32)", error=TypeError)  # fmt: skip
    if isinstance(x, QTensor):
        check_format(x.format)
        require(activation is None, "activation", got="one for an x of codes", expected="None",
                remedy="codes are rounded already")  # fmt: skip
    elif activation is not None:
        check_format(activation.format)
        require(activation.key is None, "activation", got="a key", expected="None",
                remedy="round at random by `stochastic_codes`")  # fmt: skip


def _flattened(x, k: int):
    if not isinstance(x, QTensor):
        return x.reshape(-1, k)
    rows = math.prod(x.shape[:-1])

    def flat(a):
        if a is None or a.size == 1:
            return None if a is None else a.reshape(1, 1)
        return jnp.broadcast_to(a, (*x.shape[:-1], a.shape[-1])).reshape(rows, -1)

    return QTensor(x.codes.reshape(rows, k), flat(x.scale), flat(x.zero_point), x.format)
