import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, quantize_gradient
from tests.tolerances import assert_close

X = jax.random.normal(jax.random.key(0), (3, 4))
U = jnp.array([[-7.0, 2.4, 2.6, 0.5], [1.4, 1.6, 3.5, -3.5], [0.0, 0.0, 0.0, 0.0]])
# Per tensor the step is absmax / 7 = 1, so codes are read off.
NEAREST = [[-7, 2, 3, 0], [1, 2, 4, -4], [0, 0, 0, 0]]


def _vjp(u, uniform=None, **kwargs):
    function = lambda x: quantize_gradient(x, uniform, format=IntFormat(4), **kwargs)  # noqa: E731
    return jax.jit(lambda u: jax.vjp(function, X)[1](u)[0])(u)


def test_forward_is_identity_and_cotangent_is_rounded():
    np.testing.assert_array_equal(quantize_gradient(X, format=IntFormat(4)), X)
    np.testing.assert_array_equal(_vjp(U), NEAREST)


def test_each_row_can_have_its_own_scale():
    expected = np.round(np.asarray(U[1]) / 0.5) * 0.5
    np.testing.assert_array_equal(_vjp(U, scale_shape=(3, 1))[1], expected)


def test_width_of_the_gradient_may_be_traced():
    def run(bits):
        loss = lambda x: jnp.vdot(quantize_gradient(x, format=IntFormat(bits)), U)  # noqa: E731
        return jax.grad(loss)(X)

    swept = jax.jit(jax.vmap(run))(jnp.array([3, 4]))
    np.testing.assert_array_equal(swept[1], NEAREST)
    np.testing.assert_array_equal(swept[0], run(3))


def test_stochastic_cotangent_is_unbiased():
    num = 4000
    uniform = jax.random.uniform(jax.random.key(1), (num, *X.shape))
    draws = jax.vmap(lambda n: _vjp(U, n))(uniform)
    f = np.asarray(U) % 1
    se = np.sqrt(f * (1 - f) / num)
    assert np.all(np.abs(draws.mean(0) - U) <= 4 * se + 1e-12)


def test_everything_but_the_cotangent_is_left_alone():
    uniform = jnp.full(X.shape, 0.25)
    assert_close(_vjp(U, uniform), np.floor(np.asarray(U) + 0.25))


def test_formats_without_both_signs_and_zero_are_refused():
    for format in (IntFormat(1), IntFormat(4, signed=False)):
        with pytest.raises(ValueError, match="expected signed with at least 2 bits"):
            quantize_gradient(X, format=format)
