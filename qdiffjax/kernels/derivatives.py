"""Derivatives of products of codes: those of the simulation that they equal.

    y = act(x_hat w_hat + bias),   x_hat = fake_quant(x),   w_hat = s_w (q_w - z_w)

So dy goes through w_hat as a float product, and straight through the rounding of x where nothing
clips; scales get the derivatives of `quant.fake_quant`. A dynamic grid is held constant and clips
nothing. Codes have no derivative. The rule is a `jax.custom_jvp` with a linear tangent: both modes
work.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels.operands import cropped
from qdiffjax.kernels.reference import finish
from qdiffjax.quant import ActivationGrid, QTensor, dequantize


class Operands(NamedTuple):
    """What a product has derivatives for: x, w, how x becomes codes, bias [N]; None if absent."""

    x: Any
    w: Any
    activation: ActivationGrid | None
    bias: Any


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def with_derivative(kernel: Callable, simulation: Callable, operands) -> Array:
    """Return kernel(operands), with the derivative of simulation(operands)."""
    return kernel(operands)


@with_derivative.defjvp
def _with_derivative_jvp(kernel, simulation, primals, tangents):
    _, tangent = jax.jvp(simulation, primals, tangents)
    return with_derivative(kernel, simulation, *primals), tangent


def simulated_matmul(act_fn, out_dtype, operands: Operands) -> Array:
    """Return act(x_hat w_hat + bias) [M, N] in float32, differentiable."""
    x, w, activation, bias = operands
    y = jnp.matmul(simulated_operand(x, activation, (1,)), dequantize(w))
    return finish(y, bias, act_fn, out_dtype)


def simulated_conv(window: dict, act_fn, out_dtype, operands: Operands) -> Array:
    """Return act(x_hat * w_hat + bias) [B, *out, N] in float32, differentiable."""
    x, w, activation, bias = operands
    x = simulated_operand(x, activation, tuple(range(1, x.ndim)))
    x, _, window = cropped(x, None, window)
    y = jax.lax.conv_general_dilated(x, dequantize(w), **window)
    return finish(y, bias, act_fn, out_dtype)


def simulated_operand(x, grid: ActivationGrid | None, axes: tuple[int, ...]) -> Array:
    """Return float32 of x as a kernel sees it, whose derivative passes the rounding."""
    if grid is None:
        return dequantize(x) if isinstance(x, QTensor) else x.astype(jnp.float32)
    return grid.round(x, axes).astype(jnp.float32)


def holds_arrays(fn: Callable | None) -> bool:
    """Whether an elementwise function has arrays of its own, which no kernel takes inside."""
    if fn is None:
        return False
    return bool(jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((8, 128), jnp.float32)).consts)
