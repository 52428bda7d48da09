"""Learned grids: derivatives against autodiff of plain forms, in both modes, for traced bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, minmax
from qdiffjax.quant.learned import (
    fake_quant_lsq_plus,
    fake_quant_pact,
    fake_quant_pact_residual,
    lsq_init,
    lsq_plus_activation_init,
    lsq_plus_weight_init,
)
from tests.tolerances import assert_close, both_modes

X = 1.5 * jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
SCALE = jax.random.uniform(jax.random.key(1), (4, 2), X.dtype, 0.2, 0.5)
BETA = jnp.linspace(-0.4, 0.6, 6)[None]
WIDTHS = jnp.array([2, 3, 4, 8])
hold = jax.lax.stop_gradient


def check_against_plain(ours, plain, *primals):
    """Same value and derivatives, vmapped over widths; values bit for bit those of static bits.

    Second derivatives agree between the orders of differentiation.
    """
    traced = jax.jit(jax.vmap(lambda b: both_modes(functools.partial(ours, b), *primals)))(WIDTHS)
    expected = jax.jit(jax.vmap(lambda b: both_modes(functools.partial(plain, b), *primals)))(
        WIDTHS
    )
    jax.tree.map(assert_close, traced, expected)
    static = jax.jit(functools.partial(ours, 4))(*primals)
    np.testing.assert_array_equal(traced[0][2], static)


def _spread(param):
    for axis in range(2):
        param = jnp.repeat(param, X.shape[axis] // param.shape[axis], axis)
    return param


def _qmax(bits, *, signed):
    return 2.0 ** (jnp.asarray(bits).astype(jnp.float64) - int(signed)) - 1


@pytest.mark.parametrize("signed", [True, False])
def test_lsq_plus_is_the_published_form(signed):
    """Straight-through autodiff of round(clip((x - beta) / s, n, p)) s + beta."""

    def plain(bits, x, scale, beta):
        s, b, qmax = _spread(scale), _spread(beta), _qmax(bits, signed=signed)
        c = jnp.clip((x - b) / s, -qmax if signed else 0.0, qmax)
        return (c + hold(jnp.round(c) - c)) * s + b

    def ours(bits, x, scale, beta):
        return fake_quant_lsq_plus(x, scale, beta, format=IntFormat(bits, signed=signed))

    check_against_plain(ours, plain, X, SCALE, BETA)


def test_lsq_plus_gradient_of_beta_is_one_outside_and_zero_inside():
    """Bhalgat et al. 2020: inside, the offset moves the grid and the code moves back."""
    x = jnp.array([-9.0, -0.7, 0.3, 9.0])
    grad = jax.grad(lambda b, x: fake_quant_lsq_plus(x, jnp.array(0.5), b, format=IntFormat(3)))
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(grad, (None, 0)))(jnp.array(0.2), x), [1, 0, 0, 1]
    )


ALPHA = jnp.array([[0.5], [1.0], [1.5], [2.5]])


def _pact_value(bits, x, alpha):
    s = _spread(alpha) / _qmax(bits, signed=False)
    return jnp.round(jnp.clip(x, 0, _spread(alpha)) / s) * s


def test_pact_has_the_published_gradient():
    """Autodiff of 0.5 (|x| - |x - alpha| + alpha), Choi et al. 2018, eq. 1, around the value."""

    def plain(bits, x, alpha):
        a = _spread(alpha)
        y = 0.5 * (jnp.abs(x) - jnp.abs(x - a) + a)
        return y + hold(_pact_value(bits, x, alpha) - y)

    def ours(bits, x, alpha):
        return fake_quant_pact(x, alpha, format=IntFormat(bits, signed=False))

    check_against_plain(ours, plain, X, ALPHA)


def test_residual_pact_has_the_gradient_of_the_whole_expression():
    """Straight-through autodiff of round(clip(x qmax / alpha)) alpha / qmax."""

    def plain(bits, x, alpha):
        s = _spread(alpha) / _qmax(bits, signed=False)
        c = jnp.clip(x / s, 0, _qmax(bits, signed=False))
        return (c + hold(jnp.round(c) - c)) * s

    def ours(bits, x, alpha):
        return fake_quant_pact_residual(x, alpha, format=IntFormat(bits, signed=False))

    check_against_plain(ours, plain, X, ALPHA)


def test_published_pact_gradient_is_one_from_alpha_on_and_zero_before():
    """Choi et al. 2018, eq. 3, the boundary included; the residual form differs inside."""
    x, format = jnp.array([-1.0, 0.0, 0.4, 0.6, 1.0, 9.0]), IntFormat(1, signed=False)

    def slopes(function):
        grads = jax.vmap(jax.grad(lambda x, a: function(x, a, format=format), (0, 1)), (0, None))
        return jax.jit(grads)(x, jnp.array(1.0))

    dx, dalpha = slopes(fake_quant_pact)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(dalpha, [0, 0, 0, 0, 1, 1])
    assert_close(slopes(fake_quant_pact_residual)[1], np.array([0, 0, -0.4, 0.4, 0, 1.0]))


def test_residual_pact_is_homogeneous_and_the_published_rule_is_not():
    """Q(k x, k alpha) = k Q(x, alpha), so that x dQ/dx + alpha dQ/dalpha = Q (Euler)."""
    format = IntFormat(3, signed=False)
    results = {}
    for function in (fake_quant_pact, fake_quant_pact_residual):
        run = lambda x, a, f=function: f(x, a, format=format)  # noqa: E731
        results[function] = jax.jit(lambda p, run=run: jax.jvp(run, p, p))((X, ALPHA))
    assert_close(*reversed(results[fake_quant_pact_residual]))
    value, tangent = results[fake_quant_pact]
    assert np.max(np.abs(value - tangent)) > 0.05


def test_second_derivatives_do_not_depend_on_the_order():
    def loss(params):
        out = fake_quant_lsq_plus(X, *params, format=IntFormat(3))
        return jnp.sum(jnp.sin(out) * fake_quant_pact(X, ALPHA, format=IntFormat(3, signed=False)))

    params = (SCALE, BETA)
    a, b = (jax.tree.map(lambda p, k=k: jnp.cos(k * p), params) for k in (3, 5))

    @jax.jit
    def second(a, b):
        hvp = jax.jvp(jax.grad(loss), (params,), (a,))[1]
        reverse = jax.vjp(jax.grad(loss), params)[1](b)[0]
        pair = lambda u, v: sum(jnp.vdot(p, q) for p, q in zip(u, v, strict=True))  # noqa: E731
        return pair(hvp, b), pair(reverse, a)

    assert_close(*second(a, b), factor=256)


def test_initial_scales_by_their_formulas():
    x, shape, format = np.asarray(X), (1, 6), IntFormat(4)
    got = lsq_init(X, format=format, scale_shape=shape)
    assert_close(got[0], 2 * np.abs(x).mean(0) / np.sqrt(7))
    got = lsq_plus_weight_init(X, format=format, scale_shape=shape)
    mean, std = x.mean(0), x.std(0)
    assert_close(got[0], np.maximum(abs(mean - 3 * std), abs(mean + 3 * std)) / 8)
    traced = jax.jit(jax.vmap(lambda b: lsq_plus_weight_init(X, format=IntFormat(b))))(WIDTHS)
    assert_close(traced[:, 0, 0] * 2.0 ** (np.asarray(WIDTHS) - 1), np.full(4, traced[0, 0, 0] * 2))


def test_activation_init_beats_minmax_on_skewed_data_and_covers_uniform_data():
    """SiLU outputs sit far from the middle of their range; on equispaced data minmax is best."""
    format = IntFormat(3, signed=False)
    x = jax.nn.silu(3 * jax.random.normal(jax.random.key(2), (512,), jnp.float64))
    fit = jax.jit(lambda x: lsq_plus_activation_init(x, format=format))

    def mse(scale, beta):
        codes = np.clip(np.round((np.asarray(x) - beta) / scale), 0, 7)
        return np.mean((scale * codes + beta - np.asarray(x)) ** 2)

    scale, beta = (float(p[0]) for p in fit(x))
    full = float(x.max() - x.min()) / 7
    assert mse(scale, beta) < 0.8 * mse(full, float(x.min()))
    grid = minmax(x, format=format)
    assert mse(scale, beta) < mse(float(grid[0][0]), -float(grid[0][0]) * int(grid[1][0]))
    for got, expected in zip(fit(jnp.arange(8.0) + 5), (1.0, 5.0), strict=True):
        assert_close(got, np.array([expected]))


def test_misuse_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="2 bits or more, or unsigned"):
        fake_quant_lsq_plus(X, SCALE, BETA, format=IntFormat(1))
    with pytest.raises(ValueError, match="divisor"):
        fake_quant_lsq_plus(X, SCALE, jnp.ones((1, 4)), format=IntFormat(4))
    for function in (fake_quant_pact, fake_quant_pact_residual):
        with pytest.raises(ValueError, match="signed=False"):
            function(X, ALPHA, format=IntFormat(4))
        with pytest.raises(ValueError, match="expected positive finite steps"):
            function(X, 0 * ALPHA, format=IntFormat(4, signed=False))
