"""Derivative rules of fake quantization against autodiff of a plain surrogate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import (
    IntFormat,
    fake_quant,
    fake_quant_codes,
    fake_quant_lsq,
    fake_quant_stochastic,
    uniform_like,
)
from tests.tolerances import assert_close

X = 2 * jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
SCALES = {"tensor": (1, 1), "channel": (1, 6), "token": (4, 1), "group": (4, 2)}
FORMAT = IntFormat(3)


def _scale(name):
    return jax.random.uniform(jax.random.key(1), SCALES[name], X.dtype, 0.3, 0.7)


def _value_and_vjp(function, u, *primals):
    """Jitted, since a hundred tiny compilations are what a test of eager code costs."""

    def run(u, *primals):
        out, vjp = jax.vjp(function, *primals)
        return out, vjp(u)

    return jax.jit(run)(u, *primals)


def _spread(param):
    """Repeat a [*groups] array to the shape of X: the slow independent way."""
    for axis in range(2):
        param = jnp.repeat(param, X.shape[axis] // param.shape[axis], axis)
    return param


def _surrogate(x, scale, zero, qmin, qmax, rounded):
    """scale * (c + stop_gradient(q - c)), c the clipped but not rounded code."""
    s, z = _spread(scale), _spread(zero)
    c = jnp.clip(x / s, qmin - z, qmax - z)
    q = jnp.clip(rounded, qmin - z, qmax - z)
    return s * (c + jax.lax.stop_gradient(jnp.where(c == q, 0.0, q - c)))


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("with_zero_point", [False, True])
def test_vjp_equals_autodiff_of_the_plain_form(name, with_zero_point):
    scale = _scale(name)
    zero = jnp.round(jnp.linspace(-1.0, 2.0, scale.size).reshape(scale.shape))
    zero = zero if with_zero_point else jnp.zeros_like(scale)
    u = jax.random.normal(jax.random.key(2), X.shape, X.dtype)

    def plain(x, s, z):
        return _surrogate(x, s, z, -3, 3, jnp.round(x / _spread(s)))

    def ours(x, s, z):
        return fake_quant(x, s, z if with_zero_point else None, format=FORMAT)

    expected, plain_bars = _value_and_vjp(plain, u, X, scale, zero)
    actual, bars = _value_and_vjp(ours, u, X, scale, zero)
    assert_close(actual, expected)
    for got, want in list(zip(bars, plain_bars, strict=True))[: 2 + with_zero_point]:
        assert_close(got, want)


def test_gradient_in_x_is_that_of_clip():
    """Autodiff of clip(x) + stop_gradient(x_hat - clip(x)), in real units."""
    scale = jnp.full((1, 1), 0.5)

    def plain(x):
        clipped = jnp.clip(x, -1.5, 1.5)
        x_hat = jnp.clip(jnp.round(x / 0.5), -3, 3) * 0.5
        return clipped + jax.lax.stop_gradient(x_hat - clipped)

    u = jax.random.normal(jax.random.key(3), X.shape, X.dtype)
    x_hat, bars = _value_and_vjp(lambda x: fake_quant(x, scale, format=FORMAT), u, X)
    expected, plain_bars = _value_and_vjp(plain, u, X)
    assert_close(x_hat, expected)
    np.testing.assert_array_equal(bars[0], plain_bars[0])


def test_scale_gradient_is_the_published_one():
    """Esser et al. 2020, eq. 3: round(v) - v inside, -Q_N or Q_P at and beyond the ends."""
    x = jnp.array([-9.0, -1.7, -0.3, 0.0, 0.6, 1.1, 9.0])
    expected = np.array([-3.0, -2 + 1.7, 0.3, 0.0, 0.4, -0.1, 3.0])
    grad = jax.jit(jax.vmap(jax.grad(lambda s, x: fake_quant(x, s, format=FORMAT)), (None, 0)))
    assert_close(grad(jnp.array(1.0), x), expected)


def test_zero_point_gradient_is_zero_inside_and_minus_scale_outside():
    x = jnp.array([-9.0, -0.7, 0.3, 9.0])
    grad = jax.grad(lambda z, x: fake_quant(x, jnp.array(0.5), z, format=FORMAT))
    got = jax.jit(jax.vmap(grad, (None, 0)))(jnp.array(1.0), x)
    np.testing.assert_array_equal(got, [-0.5, 0.0, 0.0, -0.5])


def test_lsq_damps_the_scale_gradient_and_nothing_else():
    scale = _scale("group")

    def grads(function, **kwargs):
        loss = lambda x, s: jnp.sum(function(x, s, format=FORMAT, **kwargs) ** 2)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(X, scale)

    value, (dx, ds) = grads(fake_quant)
    for kwargs, factor in (({}, 1 / math.sqrt(3 * 3)), ({"grad_scale": 0.25}, 0.25)):
        damped_value, (damped_dx, damped_ds) = grads(fake_quant_lsq, **kwargs)
        assert damped_value == value
        np.testing.assert_array_equal(damped_dx, dx)
        assert_close(damped_ds, ds * factor)


def test_binary_rule_follows_from_the_same_plain_form():
    x = jnp.array([-2.0, -0.3, 0.0, 0.2, 3.0])
    scale = jnp.array([0.5])
    format = IntFormat(1)
    ours = lambda x, s: fake_quant(x, s, format=format)  # noqa: E731
    x_hat, (x_bar, scale_bar) = _value_and_vjp(ours, jnp.ones(5), x, scale)
    np.testing.assert_array_equal(x_hat, [-0.5, -0.5, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(x_bar, [0, 1, 1, 1, 0])
    assert_close(scale_bar, np.array([-1 + (-1 + 0.6) + 1 + (1 - 0.4) + 1]))


@pytest.mark.parametrize("format", [FORMAT, IntFormat(1), IntFormat(4, signed=False)])
def test_eulers_identity_for_a_homogeneous_map(format):
    """Q(k x, k scale) = k Q(x, scale), hence x dQ/dx + scale dQ/dscale = Q."""
    scale = _scale("channel")
    ours = lambda x, s: fake_quant(x, s, format=format)  # noqa: E731
    x_hat, tangent = jax.jit(lambda *p: jax.jvp(ours, p, p))(X, scale)
    assert_close(tangent, x_hat)


def test_element_that_sets_the_range_is_inside_whatever_the_rounding():
    x = np.linspace(0.1, 10, 200, dtype=np.float32)

    @jax.jit
    def slope(scale, qmax):
        loss = lambda x: fake_quant_codes(x, scale, None, -qmax, qmax).sum()  # noqa: E731
        return jax.grad(loss)(jnp.asarray(x))

    for qmax in np.array([3, 127, 32767], np.float32):
        scale = x / qmax
        np.testing.assert_array_equal(slope(scale, qmax), 1.0)
        assert np.any(x * (1 / scale) > qmax)  # else the case would prove nothing


def _random_case(seed):
    keys = jax.random.split(jax.random.key(seed), 7)
    scale = _scale("group")
    zero = jnp.round(jax.random.normal(keys[0], scale.shape, X.dtype))
    primals = (X, scale, zero)
    tangents = [
        tuple(jax.random.normal(k, p.shape, p.dtype) for k, p in zip(ks, primals, strict=True))
        for ks in (keys[1:4], keys[4:7])
    ]
    return primals, tangents


@pytest.mark.parametrize("seed", range(3))
def test_vjp_is_the_transpose_of_the_jvp(seed):
    primals, (tangents, _) = _random_case(seed)
    function = lambda *p: fake_quant(*p, format=FORMAT)  # noqa: E731
    _, forward = jax.jit(lambda p, d: jax.jvp(function, p, d))(primals, tangents)
    u = jax.random.normal(jax.random.key(99 + seed), X.shape, X.dtype)
    _, back = _value_and_vjp(function, u, *primals)
    right = sum(jnp.vdot(a, b) for a, b in zip(back, tangents, strict=True))
    assert_close(jnp.vdot(u, forward), right, factor=256, scale=float(X.size))


def test_second_derivative_is_symmetric_and_that_of_the_plain_form():
    primals, (a, b) = _random_case(5)

    def second(function):
        first = lambda *p: jax.jvp(function, p, a)[1]  # noqa: E731
        return jax.jit(lambda p: jax.jvp(first, p, b)[1])(primals)

    def swapped(function):
        first = lambda *p: jax.jvp(function, p, b)[1]  # noqa: E731
        return jax.jit(lambda p: jax.jvp(first, p, a)[1])(primals)

    ours = lambda *p: fake_quant(*p, format=FORMAT)  # noqa: E731
    plain = lambda x, s, z: _frozen(x, s, z, *primals)  # noqa: E731
    assert_close(second(ours), swapped(ours))
    assert_close(second(ours), second(plain))


def _frozen(x, s, z, x0, s0, z0):
    """The piecewise smooth function, with its pieces and rounding errors frozen at x0, s0, z0."""
    v, s, z = x0 / _spread(s0), _spread(s), _spread(z)
    low, high = -3 - _spread(z0), 3 - _spread(z0)
    inside = x + s * (jnp.round(v) - v)
    return jnp.where(v < low, s * (-3 - z), jnp.where(v > high, s * (3 - z), inside))


def test_stochastic_version_follows_the_same_plain_form():
    scale, zero = _scale("group"), jnp.ones(SCALES["group"])
    uniform = uniform_like(jax.random.key(4), X)
    u = jax.random.normal(jax.random.key(6), X.shape, X.dtype)

    def plain(x, s, z):
        rounded = jnp.floor(x / _spread(s) + uniform.astype(x.dtype))
        return _surrogate(x, s, z, -3, 3, rounded)

    ours = lambda x, s, z: fake_quant_stochastic(x, s, z, uniform, format=FORMAT)  # noqa: E731
    expected, plain_bars = _value_and_vjp(plain, u, X, scale, zero)
    actual, bars = _value_and_vjp(ours, u, X, scale, zero)
    assert_close(actual, expected)
    for got, want in zip(bars, plain_bars, strict=True):
        assert_close(got, want)


def test_stochastic_version_is_unbiased_with_variance_scale_squared_f_1_minus_f():
    num, scale = 20_000, 0.25
    x = jnp.broadcast_to(jnp.array([[-0.6], [0.05], [0.7]], jnp.float32), (3, num))
    uniform = uniform_like(jax.random.key(7), x)
    step = jnp.full((1, 1), scale, jnp.float32)
    r = np.asarray(fake_quant_stochastic(x, step, None, uniform, format=IntFormat(4)), np.float64)
    f = np.asarray(x[:, 0], np.float64) / scale % 1
    variance = scale**2 * f * (1 - f)
    assert np.all(np.abs(r.mean(1) - np.asarray(x[:, 0])) < 4 * np.sqrt(variance / num))
    fourth = scale**4 * f * (1 - f) * (1 - 3 * f * (1 - f))
    se = np.sqrt((fourth - variance**2) / num)
    assert np.all(np.abs(r.var(1) - variance) < 4 * se + 4 * variance / num)


def test_scale_tangent_costs_nothing_when_the_scale_is_constant():
    scale = jnp.full((1, 1), 0.5)
    text = str(jax.make_jaxpr(lambda x, d: jax.jvp(_quantized(scale), (x,), (d,)))(X, X))
    primal = str(jax.make_jaxpr(_quantized(scale))(X))
    assert text.count(" round[") == primal.count(" round[")


def _quantized(scale):
    return lambda x: fake_quant(x, scale, format=FORMAT)


def test_range_has_no_derivative():
    grad = jax.grad(lambda q: jnp.sum(fake_quant_codes(X, _scale("tensor"), None, -q, q)))
    assert grad(jnp.array(3.0)) == 0.0
