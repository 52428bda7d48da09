"""Codebooks against exact search, and the gradient of a learned one against its plain form."""

import functools
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from qdiffjax.quant import fake_quant, quantization_error, rounding
from qdiffjax.quant.fake_quant_variants import fake_quant_codebook
from qdiffjax.quant.formats.base import Format
from qdiffjax.quant.formats.codebooks import CodebookFormat, nf4
from qdiffjax.quant.qtensor import dequantize, quantize
from tests.tolerances import assert_close

SETTINGS = settings(max_examples=20, deadline=None)
ONE = jnp.ones(1, jnp.float32)
SIZES = (2, 7, 40)  # both ways of searching


def _random_levels(n, seed=0, dtype=np.float32):
    return np.sort(np.random.default_rng(seed).normal(size=n)).astype(dtype)


@functools.partial(jax.jit, static_argnames="round_fn")
def _round(v, levels, round_fn=rounding.nearest_even):
    return CodebookFormat(levels).round(v, round_fn)


def _hard_numbers(levels):
    """The levels, their midpoints as rounded, the neighbours of both, and beyond the ends."""
    middle = (levels[1:] + levels[:-1]) / 2
    v = np.concatenate([levels, middle, [levels[0] - 9, levels[-1] + 9, 0.0]]).astype(levels.dtype)
    return np.concatenate([v, np.nextafter(v, np.inf), np.nextafter(v, -np.inf)])


def _nearest(v, levels):
    """The level of least |v - level| in rational arithmetic; of two, that of even index."""
    exact = [Fraction(float(a)) for a in levels]
    v = Fraction(float(v))
    return levels[min(range(len(levels)), key=lambda j: (abs(v - exact[j]), j % 2))]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_exactly_to_the_nearest_level_and_ties_to_the_even_index(n, dtype):
    levels = _random_levels(n, n, dtype)
    v = _hard_numbers(levels)
    expected = np.array([_nearest(a, levels) for a in v])
    np.testing.assert_array_equal(_round(v, jnp.asarray(levels)), expected)
    format = CodebookFormat(levels)
    closed_over = jax.jit(lambda v: format.round(v, rounding.nearest_even))
    np.testing.assert_array_equal(closed_over(v), expected)


def test_ties_go_to_the_even_index_on_either_side():
    v = jnp.array([-1.5, -0.5, 0.5, 2.0], jnp.float32)
    levels = jnp.array([-2.0, -1, 0, 1, 3], jnp.float32)
    np.testing.assert_array_equal(_round(v, levels), [-2, 0, 0, 3])


def test_traced_levels_equal_static_levels_bitwise_and_a_sweep_traces_once():
    x = jax.random.normal(jax.random.key(0), (64,), jnp.float32)
    books = np.stack([_random_levels(16, s) for s in range(3)])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sweep(books):
        one = lambda b: fake_quant(x, 0.7 * ONE, format=CodebookFormat(b))  # noqa: E731
        return jax.vmap(one)(books)

    @jax.jit
    def static(x):
        return jnp.stack([fake_quant(x, 0.7 * ONE, format=CodebookFormat(b)) for b in books])

    np.testing.assert_array_equal(sweep(jnp.asarray(books)), static(x))
    sweep(jnp.asarray(2 * books))


@pytest.mark.parametrize(("n", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9)])
def test_width_of_a_code_is_that_of_the_largest_index(n, bits):
    format = CodebookFormat(_random_levels(n))
    assert isinstance(format, Format)
    assert format.bits == bits
    assert np.iinfo(format.storage_dtype).max >= n - 1
    assert hash(format) == hash(CodebookFormat(tuple(format.levels())))


@pytest.mark.parametrize("n", [3, 257])
def test_codes_are_indices_and_survive_storage(n):
    format = CodebookFormat(_random_levels(n))

    @jax.jit
    def round_trip(codes):
        grid = format.decode(codes, jnp.float32)
        q = quantize(2 * grid, 2 * ONE, format=format)
        return grid, format.encode(grid), q.codes, dequantize(q)

    codes = np.arange(n, dtype=format.storage_dtype)
    grid, again, stored, real = round_trip(codes)
    np.testing.assert_array_equal(grid, format.levels())
    np.testing.assert_array_equal(again, codes, strict=True)
    np.testing.assert_array_equal(stored, codes, strict=True)
    np.testing.assert_array_equal(real, 2 * grid)


@pytest.mark.parametrize("n", SIZES)
def test_floor_rounding_takes_the_last_level_not_above(n):
    levels = _random_levels(n, 3 * n)
    v = _hard_numbers(levels)
    expected = [max((a for a in levels if a <= x), default=levels[0]) for x in v]
    np.testing.assert_array_equal(_round(v, jnp.asarray(levels), rounding.floor), expected)


def test_stochastic_rounding_has_no_bias_in_value():
    """Over u at the midpoints of N equal cells the mean is v to within gap / N."""
    num, levels = 1000, _random_levels(9, 4)
    v = np.linspace(levels[0], levels[-1], 101, dtype=np.float32)
    u = ((np.arange(num) + 0.5) / num).astype(np.float32)

    @jax.jit
    def mean(v):
        round_fn = lambda t: rounding.stochastic(t, jnp.asarray(u))  # noqa: E731
        return jnp.mean(CodebookFormat(levels).round(jnp.full(num, v), round_fn))

    gap = np.diff(levels).max()
    error = np.asarray(jax.vmap(mean)(jnp.asarray(v))) - v
    assert np.all(np.abs(error) <= gap / num * 1.01)


def test_nan_stays_and_infinities_saturate():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf], jnp.float32)
    for round_fn in (rounding.nearest_even, rounding.floor):
        run = jax.jit(lambda x, f=round_fn: fake_quant(x, 0.5 * ONE, format=nf4(), round_fn=f))
        np.testing.assert_array_equal(run(x), [np.nan, 0.5, -0.5])


@pytest.mark.parametrize("x", [np.zeros((0,)), np.zeros((0, 3)), np.full((1,), 0.3), np.array(1.0)])
def test_empty_and_single_arrays(x):
    scale = np.ones((1,) * x.ndim)
    out = jax.jit(lambda x: fake_quant(x, scale, format=CodebookFormat((-1, 0, 1))))(x)
    np.testing.assert_array_equal(out, np.round(x), strict=True)


def test_subnormal_numbers_go_to_the_level_zero():
    x = jnp.array([1e-45, -1e-45, 1e-39], jnp.float32)
    out = jax.jit(lambda x: fake_quant(x, ONE, format=nf4()))(x)
    np.testing.assert_array_equal(out, np.zeros(3))


@st.composite
def cases(draw):
    """Sorted data, a scale and a codebook of seven levels that ascend by at least 1e-3."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    levels = np.cumsum(rng.exponential(size=7) + 1e-3) - 4
    return np.sort(rng.normal(size=64) * 3), rng.uniform(0.2, 2.0, 1), levels


_quantized = jax.jit(lambda x, s, levels: fake_quant(x, s, format=CodebookFormat(levels)))


@SETTINGS
@given(cases(), st.integers(-20, 20))
def test_quantizer_is_idempotent_monotone_and_homogeneous(case, exponent):
    x, scale, levels = case
    once = np.asarray(_quantized(x, scale, levels))
    np.testing.assert_array_equal(_quantized(once, scale, levels), once)
    assert np.all(np.diff(once) >= 0)
    k = 2.0**exponent
    np.testing.assert_array_equal(_quantized(k * x, k * scale, levels), k * once)


@SETTINGS
@given(cases())
def test_error_inside_is_at_most_half_the_gap_around_x(case):
    x, scale, levels = case
    error = np.abs(_quantized(x, scale, levels) - x)
    v = x / scale
    inside = (v > levels[0]) & (v < levels[-1])
    gap = np.diff(levels)[np.searchsorted(levels, v[inside]) - 1]
    assert np.all(error[inside] <= scale * gap / 2 * (1 + 1e-12))


@SETTINGS
@given(cases())
def test_symmetric_codebook_is_odd_also_at_ties_if_its_size_is_odd(case):
    levels = (case[2] - case[2][::-1]) / 2
    v = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, case[0]])
    one = np.ones(1)
    np.testing.assert_array_equal(_quantized(-v, one, levels), -_quantized(v, one, levels))


def test_symmetric_codebook_of_even_size_is_odd_off_ties_only():
    out = _round(jnp.array([-1.0, 1.0]), jnp.array([-1.5, -0.5, 0.5, 1.5]))
    np.testing.assert_array_equal(out, [-1.5, 0.5])


def test_quantization_error_is_that_of_the_grid():
    x = jnp.array([0.2, 0.9, -3.0], jnp.float32)
    error = jax.jit(lambda x: quantization_error(x, ONE, format=CodebookFormat((-1, 0, 1))))(x)
    np.testing.assert_array_equal(error, np.float32([0, 1, -1]) - np.asarray(x))


def test_nf4_follows_from_the_quantile_formula():
    """bitsandbytes' create_normal_map in float64; the published constants are float32 of it."""
    p = 0.9677083
    positive, negative = ndtri(np.linspace(0.5, p, 9)), -ndtri(np.linspace(0.5, p, 8))
    derived = np.concatenate([negative[::-1], positive[1:]]) / ndtri(p)
    assert np.max(np.abs(nf4().levels() - derived)) <= 2.0**-23
    np.testing.assert_array_equal(np.float32(nf4().levels()), nf4().levels())


# --- The learned codebook -----------------------------------------------------------------------

X = jnp.asarray(1.5 * np.random.default_rng(0).normal(size=(4, 6)))
LEVELS = jnp.array([-2.0, -0.9, -0.1, 0.4, 1.7])
SCALES = {"tensor": (1, 1), "channel": (1, 6), "group": (4, 2)}


def _scale(name):
    return jnp.asarray(np.random.default_rng(1).uniform(0.5, 0.9, SCALES[name]))


def _normal(seed, shape=X.shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _spread(scale):
    for axis in range(2):
        scale = jnp.repeat(scale, X.shape[axis] // scale.shape[axis], axis)
    return scale


def _plain(x, scale, levels):
    """Straight-through by clip and stop_gradient, the choice of a level by a one-hot product."""
    s = _spread(scale)
    c = jnp.clip(x / s, *jax.lax.stop_gradient((levels[0], levels[-1])))
    distance = jnp.abs(x[..., None] / s[..., None] - levels[None, None, :])
    chosen = jax.nn.one_hot(jnp.argmin(distance, -1), levels.size, dtype=x.dtype) @ levels
    return s * (c - jax.lax.stop_gradient(c) + chosen)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_vjp(function, u, *primals):
    out, vjp = jax.vjp(function, *primals)
    return out, vjp(u)


@pytest.mark.parametrize("name", SCALES)
def test_vjp_of_a_learned_codebook_is_that_of_the_plain_form(name):
    u = _normal(2)
    expected, plain_bars = _value_and_vjp(_plain, u, X, _scale(name), LEVELS)
    actual, bars = _value_and_vjp(fake_quant_codebook, u, X, _scale(name), LEVELS)
    assert_close(actual, expected)
    for got, want in zip(bars, plain_bars, strict=True):
        assert_close(got, want)


def test_the_element_that_sets_the_range_of_a_learned_codebook_is_inside():
    """Whatever the rounding of its scale, and however close the levels at the other end are."""
    levels = np.float32([-1.9, -1.8999, 1.9])
    x = np.linspace(0.1, 10, 200, dtype=np.float32)
    scale = x / levels[-1]
    assert np.any(x / scale > levels[-1])  # else the case would prove nothing
    loss = lambda x: fake_quant_codebook(x, scale, levels).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(jnp.asarray(x)), 1.0)


def test_levels_gradient_sums_u_times_scale_over_the_members_of_each_level():
    """Han et al. 2016, eq. 3."""
    scale, u = _scale("channel"), _normal(3)
    _, (_, _, levels_bar) = _value_and_vjp(fake_quant_codebook, u, X, scale, LEVELS)
    s = np.broadcast_to(scale, X.shape)
    member = np.argmin(np.abs(np.asarray(X / s)[..., None] - np.asarray(LEVELS)), -1)
    expected = [np.sum((u * s)[member == k]) for k in range(LEVELS.size)]
    assert_close(levels_bar, np.array(expected))


@pytest.mark.parametrize("round_fn", [rounding.nearest_even, rounding.floor])
def test_learned_codebook_has_the_values_and_the_x_and_scale_rule_of_fake_quant(round_fn):
    x, scale, levels = (a.astype(jnp.float32) for a in (X, _scale("group"), LEVELS))
    u = _normal(4).astype(x.dtype)
    format = CodebookFormat(levels)
    plain = lambda x, s: fake_quant(x, s, format=format, round_fn=round_fn)  # noqa: E731
    learned = lambda x, s: fake_quant_codebook(x, s, levels, round_fn=round_fn)  # noqa: E731
    expected, plain_bars = _value_and_vjp(plain, u, x, scale)
    actual, bars = _value_and_vjp(learned, u, x, scale)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(bars[0], plain_bars[0])
    assert_close(bars[1], plain_bars[1])


def test_learned_codebook_jvp_is_the_transpose_of_its_vjp_under_vmap_of_levels():
    books = jnp.stack([0.8 * LEVELS, LEVELS, 1.3 * LEVELS])
    primals = (X, _scale("group"))
    tangents = tuple(_normal(5, a.shape) for a in (*primals, LEVELS))
    u = _normal(6)

    @jax.jit
    @jax.vmap
    def both(levels):
        point = (*primals, levels)
        _, forward = jax.jvp(fake_quant_codebook, point, tangents)
        _, vjp = jax.vjp(fake_quant_codebook, *point)
        back = vjp(u)
        return jnp.vdot(u, forward), sum(
            jnp.vdot(a, b) for a, b in zip(back, tangents, strict=True)
        )

    left, right = both(books)
    assert_close(left, right, scale=float(X.size))
    singly = [_value_and_vjp(fake_quant_codebook, u, *primals, b)[1][2] for b in books]
    mapped = jax.jit(jax.vmap(lambda b: jax.vjp(fake_quant_codebook, *primals, b)[1](u)[2]))(books)
    assert_close(mapped, np.stack(singly))


def test_learned_codebook_second_derivative_is_that_of_the_frozen_map():
    primals = (X, _scale("channel"), LEVELS)
    a, b = (tuple(_normal(seed, p.shape) for p in primals) for seed in (7, 8))
    v = X / _spread(primals[1])
    index = jnp.argmin(jnp.abs(v[..., None] - LEVELS[None, None, :]), -1)
    inside = (v >= LEVELS[0]) & (v <= LEVELS[-1])

    def frozen(x, scale, levels):
        s = _spread(scale)
        return jnp.where(inside, x - s * v, 0.0) + s * levels[index]

    def second(function):
        first = lambda *p: jax.jvp(function, p, a)[1]  # noqa: E731
        return jax.jit(lambda p: jax.jvp(first, p, b)[1])(primals)

    assert_close(second(fake_quant_codebook), second(frozen))


def test_learned_codebook_keeps_nan_and_gives_finite_gradients_elsewhere():
    x = jnp.array([jnp.nan, jnp.inf, 0.3])
    out, (_, scale_bar, levels_bar) = _value_and_vjp(
        fake_quant_codebook, jnp.array([0.0, 1.0, 1.0]), x, jnp.ones(1), LEVELS
    )
    np.testing.assert_array_equal(out, [np.nan, 1.7, 0.4])
    assert np.isfinite(scale_bar).all()
    np.testing.assert_array_equal(levels_bar, [0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("levels", "error"),
    [
        ((0.0, 0.0), ValueError),
        ((1.0, 0.0), ValueError),
        ((1.0, 1.0 + 1e-12), ValueError),  # one number in float32
        ((0.0, np.inf), ValueError),
        ((0.0, np.nan), ValueError),
        ((1.0,), ValueError),
        (((0.0, 1.0), (0.0, 1.0)), ValueError),
        (jnp.array([1.0, 0.0]), ValueError),
        (jnp.array([0, 1]), TypeError),
    ],
)
def test_bad_levels_are_refused_with_a_remedy(levels, error):
    with pytest.raises(error, match=r"levels, values: got .* expected .*;"):
        CodebookFormat(levels)


def test_bad_arguments_of_a_learned_codebook_are_refused():
    with pytest.raises(ValueError, match="sort them"):
        fake_quant_codebook(X, jnp.ones((1, 1)), LEVELS[::-1])
    with pytest.raises(ValueError, match="scale: got"):
        fake_quant_codebook(X, jnp.zeros((1, 1)), LEVELS)
    with pytest.raises(TypeError, match="cast x first"):
        fake_quant_codebook(jnp.arange(3), jnp.ones(1), LEVELS)
