"""Derivatives of products of codes are those of the simulation, in both modes, on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import kernels
from qdiffjax.quant import ActivationGrid, dequantize, fake_quant
from tests.kernels.paths import INT8, UINT8, fast_paths, weight
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit

ZERO = jnp.int32(90)


def scalar(scale, ndim):
    return scale.reshape((1,) * ndim)


def simulated_matmul(x, scale, bias, w):
    x = fake_quant(x, scalar(scale, 2), scalar(ZERO, 2), format=UINT8)
    return jax.nn.silu(x @ dequantize(w) + bias[None])


def simulated_conv(x, scale, bias, w):
    x = fake_quant(x, scalar(scale, 4), scalar(ZERO, 4), format=UINT8)
    y = jax.lax.conv_general_dilated(
        x, dequantize(w), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.silu(y + bias[None, None, None])


CASES = {
    "matmul": (kernels.matmul, simulated_matmul, (6, 12), (12, 5)),
    "conv": (kernels.conv, simulated_conv, (1, 3, 4, 8), (1, 3, 8, 5)),
}


@pytest.mark.slow
@fast_paths
@pytest.mark.parametrize("name", CASES)
def test_both_modes_give_the_derivative_of_the_simulation(path, name):
    kernel, simulation, x_shape, w_shape = CASES[name]
    w, scale = weight(w_shape), jnp.float32(0.01)  # clips some of x

    def run(x, scale, bias):
        how = ActivationGrid(UINT8, scale, ZERO)
        return kernel(x, w, activation=how, bias=bias, act_fn=jax.nn.silu, path=path)

    primals = (normal32(0, *x_shape), scale, normal32(1, 5))
    tangents = (normal32(2, *x_shape), jnp.float32(0.3), normal32(3, 5))

    def both(fn, primals, tangents):
        y, dy = jax.jvp(fn, primals, tangents)
        return y, dy, jax.vjp(fn, *primals)[1](jnp.cos(y))

    both = quick_jit(both, static_argnums=0)
    y, dy, gradients = both(run, primals, tangents)
    expected = both(lambda *a: simulation(*a, w), primals, tangents)
    assert_close(y, expected[0])
    assert_close(dy, expected[1], factor=64)
    for got, want in zip(gradients, expected[2], strict=True):
        assert_close(got, want, factor=64)
    inner = sum(jnp.vdot(t, g) for t, g in zip(tangents, gradients, strict=True))
    assert_close(inner, jnp.vdot(dy, jnp.cos(y)), factor=256, scale=float(jnp.sum(jnp.abs(dy))))


@fast_paths
def test_rounding_lets_tangents_through_inside_the_range_only(path):
    x = jnp.asarray([[-3.0, -0.4, 0.2, 1.0, 5.0]], jnp.float32)
    scale = jnp.full((1, 1), 1 / 127, jnp.float32)
    run = lambda x: kernels.rounded(x, scale, format=INT8, path=path)  # noqa: E731
    _, dy = jax.jvp(run, (x,), (jnp.full_like(x, 2.0),))
    np.testing.assert_array_equal(dy, [[0.0, 2.0, 2.0, 2.0, 0.0]])


@fast_paths
def test_a_dynamic_scale_is_constant_to_derivatives(path):
    x, w = normal32(0, 4, 12), weight((12, 5))
    dx = normal32(1, 4, 12)
    run = lambda x: kernels.matmul(x, w, activation=ActivationGrid(INT8), path=path)  # noqa: E731
    dy = quick_jit(lambda x, dx: jax.jvp(run, (x,), (dx,))[1])(x, dx)  # nothing clips
    assert_close(dy, np.asarray(dx, np.float64) @ np.asarray(dequantize(w), np.float64))


def test_scales_of_weights_have_the_derivative_of_dequantize():
    x, w = normal32(0, 4, 12), weight((12, 5))
    with_scale = lambda s: type(w)(w.codes, s, None, w.format)  # noqa: E731
    got = jax.grad(lambda s: jnp.sum(kernels.matmul(x, with_scale(s))))(w.scale)
    expected = np.asarray(x, np.float64).sum(0) @ np.asarray(w.codes, np.float64)
    assert_close(got, expected[None])
