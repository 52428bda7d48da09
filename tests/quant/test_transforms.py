"""fake_quant under every transformation, with widths as data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, absmax, fake_quant, minmax, mse, quantization_error, quantize
from tests.tolerances import assert_close

X = jax.random.normal(jax.random.key(0), (4, 6), jnp.float32)
SCALE = jnp.full((1, 1), 0.25, jnp.float32)
FORMAT = IntFormat(3)


def _function(x, scale=SCALE):
    return fake_quant(x, scale, format=FORMAT)


@pytest.mark.parametrize("grid", [absmax, minmax, mse])
def test_traced_width_equals_static_width_bitwise(grid):
    signed = grid is not minmax

    def run(bits):
        format = IntFormat(bits, signed=signed)
        return fake_quant(X, *grid(X, format=format), format=format)

    traced = jax.jit(jax.vmap(run))(jnp.arange(2, 17))
    for bits, got in zip(range(2, 17), traced, strict=True):
        np.testing.assert_array_equal(got, run(bits))


def test_sweep_over_widths_traces_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def sweep(bits):
        one = lambda b: fake_quant(X, SCALE, format=IntFormat(b))  # noqa: E731
        return jax.vmap(one)(bits)

    sweep(jnp.array([2, 3, 4]))
    sweep(jnp.array([5, 8, 16]))


def test_width_may_vary_along_the_array():
    bits = jnp.array([[2], [3], [4], [8]])
    scale = jnp.full((4, 1), 0.25, jnp.float32)
    whole = fake_quant(X, scale, format=IntFormat(bits))
    rows = [
        fake_quant(X[i : i + 1], scale[:1], format=IntFormat(int(b[0]))) for i, b in enumerate(bits)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(rows))


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (4, 3), (4, 6)])
def test_codes_near_ties_depend_on_neither_jit_nor_constants_nor_granularity(shape):
    """x / scale is x * (1 / scale) everywhere; XLA alone would choose case by case."""
    scale = jnp.full(shape, 1 / 7, jnp.float32)
    x = (jnp.arange(-12.0, 12.0, dtype=jnp.float32).reshape(4, 6) + 0.5) * jnp.float32(1 / 7)
    step = np.float32(1 / 7)
    expected = step * np.clip(np.round(np.asarray(x) * (np.float32(1) / step)), -127, 127)
    plain = lambda x, s: fake_quant(x, s, format=IntFormat(8))  # noqa: E731
    np.testing.assert_array_equal(plain(x, scale), expected)
    np.testing.assert_array_equal(jax.jit(plain)(x, scale), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: plain(x, scale))(x), expected)
    codes = quantize(x, scale, format=IntFormat(8)).codes
    np.testing.assert_array_equal(codes, np.round(expected * 7))


def test_jit_vmap_scan_and_checkpoint_do_not_change_values():
    expected = _function(X)
    np.testing.assert_array_equal(jax.jit(_function)(X), expected)
    np.testing.assert_array_equal(jax.checkpoint(_function)(X), expected)
    per_row = jax.vmap(lambda row: fake_quant(row, SCALE[0], format=FORMAT))(X)
    np.testing.assert_array_equal(per_row, expected)
    _, scanned = jax.lax.scan(lambda c, row: (c, fake_quant(row, SCALE[0], format=FORMAT)), 0, X)
    np.testing.assert_array_equal(scanned, expected)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_derivatives_survive_wrapping(wrap):
    loss = lambda x, s: jnp.sum(jnp.sin(_function(x, s)))  # noqa: E731
    expected = jax.jit(jax.grad(loss, (0, 1)))(X, SCALE)
    wrapped = jax.jit(jax.grad(wrap(loss), (0, 1)))(X, SCALE)
    for got, want in zip(wrapped, expected, strict=True):
        assert_close(got, want)


def test_derivative_through_a_scan_is_the_product_of_windows():
    """h <- Q(h + x): with everything inside the window the derivative counts the additions."""

    def final(x):
        step = lambda h, _: (_function(h + x), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros_like(x), None, length=3)[0]

    small = jnp.full((2, 2), 0.2, jnp.float32)
    np.testing.assert_array_equal(jax.grad(lambda x: final(x).sum())(small), 3.0)
    tangent = jax.jvp(final, (small,), (jnp.ones_like(small),))[1]
    np.testing.assert_array_equal(tangent, 3.0)


def test_linearize_agrees_with_jvp():
    d = jax.random.normal(jax.random.key(1), X.shape, jnp.float32)
    _, linear = jax.linearize(_function, X, SCALE)
    expected = jax.jvp(_function, (X, SCALE), (d, SCALE))[1]
    assert_close(linear(d, SCALE), expected)


def test_hessian_of_half_square_is_the_window():
    """L = |Q(x)|^2 / 2 has gradient window * Q(x) and, straight-through, Hessian diag(window)."""
    window = np.abs(np.asarray(X[0])) <= 0.75
    row = lambda x: fake_quant(x, SCALE[0], format=FORMAT)  # noqa: E731
    loss = lambda x: jnp.sum(row(x) ** 2) / 2  # noqa: E731
    expected = np.diag(window.astype(np.float32))
    np.testing.assert_array_equal(jax.jit(jax.jacfwd(jax.jacrev(loss)))(X[0]), expected)
    d = jax.random.normal(jax.random.key(2), X[0].shape, jnp.float32)
    hvp = jax.jit(lambda x, d: jax.jvp(jax.grad(loss), (x,), (d,))[1])(X[0], d)
    assert_close(hvp, expected @ np.asarray(d))
    assert window.any()
    assert not window.all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_result_and_gradient_have_the_dtype_of_their_argument(dtype):
    x = X.astype(dtype)
    assert _function(x).dtype == dtype
    dx, ds = jax.eval_shape(jax.grad(lambda x, s: _function(x, s).sum(), (0, 1)), x, SCALE)
    assert dx.dtype == dtype
    assert ds.dtype == SCALE.dtype


def test_library_works_without_x64():
    with jax.enable_x64(False):
        x = jnp.asarray(np.asarray(X))
        unsigned = IntFormat(4, signed=False)

        @jax.jit
        def run(x):
            grid = minmax(x, format=unsigned, scale_shape=(4, 2))
            searched = mse(x, format=FORMAT)
            loss = lambda x: fake_quant(x, *searched, format=FORMAT).sum()  # noqa: E731
            return quantization_error(x, *grid, format=unsigned), jax.grad(loss)(x)

        error, gradient = run(x)
        assert error.dtype == gradient.dtype == jnp.float32
