"""Separate scales for negative and positive numbers, against fake_quant on either side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax.quant import IntFormat, fake_quant, rounding
from qdiffjax.quant.fake_quant_variants import dual_absmax, fake_quant_dual
from qdiffjax.quant.formats.floats import E2M1
from tests.tolerances import assert_close

SETTINGS = settings(max_examples=20, deadline=None)
FORMAT = IntFormat(4)
SCALES = {"tensor": (1, 1), "channel": (1, 6), "group": (4, 2)}


def _normal(seed, shape=(4, 6)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


X = _normal(0)


def _scales(name):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.uniform(a, 2 * a, SCALES[name])) for a in (0.02, 0.3)]


def _spread(scale):
    return jnp.repeat(scale, X.shape[1] // scale.shape[1], 1) if scale.shape[1] > 1 else scale


@functools.partial(jax.jit, static_argnums=0)
def _value_and_vjp(function, u, *primals):
    out, vjp = jax.vjp(function, *primals)
    return out, vjp(u)


def _dual(x, negative, positive):
    return fake_quant_dual(x, negative, positive, format=FORMAT)


def _plain(x, negative, positive):
    """scale * (c + stop_gradient(q - c)) with the steps chosen element by element."""
    s = jnp.where(x < 0, _spread(negative), _spread(positive))
    c = jnp.clip(x / s, -7, 7)
    q = jnp.clip(jnp.round(x / s), -7, 7)
    return s * (c + jax.lax.stop_gradient(q - c))


@pytest.mark.parametrize("name", SCALES)
def test_vjp_equals_autodiff_of_the_plain_form(name):
    u = _normal(2)
    expected, plain_bars = _value_and_vjp(_plain, u, X, *_scales(name))
    actual, bars = _value_and_vjp(_dual, u, X, *_scales(name))
    assert_close(actual, expected)
    for got, want in zip(bars, plain_bars, strict=True):
        assert_close(got, want)


def test_jvp_is_the_transpose_of_the_vjp_under_vmap_of_traced_bits():
    primals = (X, *_scales("group"))
    tangents = tuple(_normal(3 + i, p.shape) for i, p in enumerate(primals))
    u = _normal(9)

    @jax.jit
    @jax.vmap
    def both(bits):
        function = lambda *p: fake_quant_dual(*p, format=IntFormat(bits))  # noqa: E731
        out, forward = jax.jvp(function, primals, tangents)
        back = jax.vjp(function, *primals)[1](u)
        return out, jnp.vdot(u, forward), sum(map(jnp.vdot, back, tangents))

    out, left, right = both(jnp.arange(2, 9))
    assert_close(left, right, scale=float(X.size))
    np.testing.assert_array_equal(out[2], jax.jit(_dual)(*primals))  # 4 bits, static


@pytest.mark.parametrize("format", [FORMAT, E2M1, IntFormat(1)])
def test_each_side_is_fake_quant_with_its_own_scale(format):
    negative, positive = _scales("channel")

    @jax.jit
    def run(x):
        one = functools.partial(fake_quant, x, format=format)
        return fake_quant_dual(x, negative, positive, format=format), one(negative), one(positive)

    x = X.astype(jnp.float32).at[0, 0].set(0.0)
    out, below, above = run(x)
    np.testing.assert_array_equal(out, np.where(x < 0, below, above))


def test_equal_scales_are_one_scale():
    scale = _scales("group")[1]
    run = jax.jit(lambda x: (_dual(x, scale, scale), fake_quant(x, scale, format=FORMAT)))
    np.testing.assert_array_equal(*run(X))


@functools.partial(jax.jit, static_argnames="shape")
def _calibrated(x, shape):
    scales = dual_absmax(x, format=FORMAT, scale_shape=shape)
    return _dual(x, *scales), *scales


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(SCALES.values())), st.integers(-20, 20))
def test_calibrated_quantizer_has_half_a_step_of_error_per_side(seed, shape, exponent):
    """It is also idempotent, keeps signs, and scales with powers of two."""
    x = np.asarray(_normal(seed)) * 0.3 + 1.0 * (np.asarray(_normal(seed + 1)) > 0)
    out, negative, positive = (np.asarray(a) for a in _calibrated(x, shape))
    step = np.where(x < 0, *(np.broadcast_to(_spread(s), x.shape) for s in (negative, positive)))
    assert np.all(np.abs(out - x) <= step / 2 * (1 + 1e-12))
    assert np.all(out * x >= 0)
    run = jax.jit(_dual)
    np.testing.assert_array_equal(run(out, negative, positive), out)
    k = 2.0**exponent
    np.testing.assert_array_equal(_calibrated(k * x, shape)[0], k * out)


def test_dual_is_monotone():
    x = jnp.linspace(-3.0, 3.0, 301)
    out = jax.jit(_dual)(x, jnp.full(1, 0.05), jnp.full(1, 0.4))
    assert np.all(np.diff(out) >= 0)


def test_dual_absmax_is_the_range_of_each_sign_over_the_codes():
    x = np.array([[-0.28, -0.1, 1.4, 7.0], [0.0, 0.0, 0.0, 3.5]])
    calibrate = functools.partial(dual_absmax, format=FORMAT, scale_shape=(2, 1))
    negative, positive = jax.jit(calibrate)(x)
    assert_close(negative, np.array([[0.04], [1.0]]))  # no negative numbers: 1
    assert_close(positive, np.array([[1.0], [0.5]]))
    wide = jax.jit(functools.partial(dual_absmax, format=IntFormat(4, narrow=False)))
    assert_close(wide(x)[0], np.array([[0.28 / 8]]))


def test_silu_outputs_are_quantized_better_than_with_one_scale():
    x = jax.nn.silu(_normal(4, (4096,)))

    @jax.jit
    def errors(x):
        two = _dual(x, *dual_absmax(x, format=FORMAT))
        one = fake_quant(x, jnp.max(jnp.abs(x), keepdims=True) / 7, format=FORMAT)
        return [jnp.mean((y - x) ** 2, where=x < 0) for y in (two, one)]

    two, one = errors(x)
    assert two < one / 20  # the ratio of the ranges squared is more


def test_nan_stays_infinities_saturate_and_empty_stays_empty():
    scales = jnp.ones(1, jnp.float32), jnp.full(1, 2.0, jnp.float32)
    run = jax.jit(_dual)
    out = run(jnp.array([jnp.nan, -jnp.inf, jnp.inf, -1e-40], jnp.float32), *scales)
    np.testing.assert_array_equal(out, [np.nan, -7, 14, 0])
    assert run(jnp.zeros(0, jnp.float32), *scales).shape == (0,)


def test_stochastic_rounding_is_passed_on():
    x = jnp.array([-0.5, 0.5])
    for uniform, expected in ((0.0, [-1.0, 0.0]), (0.75, [0.0, 2.0])):
        round_fn = functools.partial(rounding.stochastic, uniform=jnp.full(2, uniform))
        out = fake_quant_dual(x, jnp.ones(1), jnp.full(1, 2.0), format=FORMAT, round_fn=round_fn)
        np.testing.assert_array_equal(out, expected)


def test_bad_arguments_are_refused_with_a_remedy():
    one = jnp.ones((1, 1))
    with pytest.raises(ValueError, match="use a signed format"):
        fake_quant_dual(X, one, one, format=IntFormat(4, signed=False))
    with pytest.raises(ValueError, match="use a signed format"):
        dual_absmax(X, format=IntFormat(4, signed=False))
    with pytest.raises(ValueError, match="scale: got"):
        fake_quant_dual(X, one, 0 * one, format=FORMAT)
    with pytest.raises(ValueError, match="same rank"):
        fake_quant_dual(X, one, jnp.ones(1), format=FORMAT)
    with pytest.raises(ValueError, match="NaN or infinity"):
        dual_absmax(X.at[0, 0].set(jnp.inf), format=FORMAT)
    with pytest.raises(TypeError, match="cast x first"):
        fake_quant_dual(jnp.zeros((1, 1), int), one, one, format=FORMAT)
