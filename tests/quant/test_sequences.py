"""Roundings that change from call to call: their sums, their laws, and their period."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import quant
from qdiffjax.quant import IntFormat, RoundingSequence
from tests import worlds
from tests.tolerances import assert_close

CALLS = jnp.arange(40)
TOGGLES = [quant.sigma_delta, quant.golden_ratio, quant.noble_ratios, quant.fresh_bits]
KEY = jax.random.key(7)
make = functools.partial(quant.rounding_sequence, key=KEY)


def codes_of(toggle_fn, fraction, phase, calls=CALLS):
    return jax.vmap(lambda i: toggle_fn(i, fraction, phase))(calls.astype(fraction.dtype))


def test_sigma_delta_is_the_closed_form_of_error_feedback():
    """q_i = round(u + r_i), r_{i+1} = u + r_i - q_i, run as a loop."""
    u, phase = worlds.normal(1, 200) * 3, jnp.asarray(np.random.default_rng(2).uniform(size=200))
    residual, expected = phase - 0.5, []
    for _ in CALLS:
        code = jnp.floor(u + residual + 0.5)
        residual = u + residual - code
        expected.append(code)
    lower = jnp.floor(u)
    upper = codes_of(quant.sigma_delta, u - lower, phase)
    np.testing.assert_array_equal(np.asarray(lower) + np.asarray(upper), np.stack(expected))


@pytest.mark.parametrize("toggle_fn", TOGGLES)
def test_a_call_takes_a_neighbour_and_the_mean_over_calls_is_the_number(toggle_fn):
    x, scale = worlds.normal(3, 6, 8), jnp.full((6, 1), 0.5)
    sequence = make(x, scale, format=IntFormat(8), toggle_fn=toggle_fn)
    values = np.asarray(jax.vmap(sequence.at)(jnp.arange(2000)))
    assert np.max(np.abs(values - np.asarray(x))) < 0.5
    np.testing.assert_array_equal(2 * values, np.round(2 * values))
    within = {quant.sigma_delta: 1, quant.fresh_bits: 120}.get(toggle_fn, 8)
    sums = np.cumsum(values - np.asarray(x), axis=0)
    assert np.max(np.abs(sums)) <= within * 0.5


@pytest.mark.parametrize("toggle_fn", [quant.sigma_delta, quant.golden_ratio])
def test_over_phases_each_call_is_an_unbiased_rounding(toggle_fn):
    """Mean f and variance f (1 - f), on a grid of phases that integrates steps to 1 / num."""
    num = 20_000
    phase = jnp.asarray((np.arange(num) + 0.5) / num)
    for f in (0.0, 0.13, 0.5, 0.9):
        upper = np.float64(codes_of(toggle_fn, jnp.full(num, f), phase, CALLS[:7]))
        np.testing.assert_allclose(upper.mean(1), f, atol=2 / num)
        np.testing.assert_allclose(upper.var(1), f * (1 - f), atol=4 / num)


def test_noble_ratios_are_unbiased_too_and_rotate_elements_apart():
    num = 2**17
    phase = jnp.asarray((np.arange(num) + 0.5) / num)
    for f in (0.13, 0.5, 0.9):
        upper = np.float64(codes_of(quant.noble_ratios, jnp.full(num, f), phase, CALLS[:7]))
        np.testing.assert_allclose(upper.mean(1), f, atol=16 / 4096)
    alike = jnp.full(16, 0.3) + jnp.arange(16) / 4096  # neighbours in phase, of all rotations
    half = jnp.full(16, 0.5)
    golden, noble = (np.asarray(codes_of(fn, half, alike, CALLS[1:]))
                     for fn in (quant.golden_ratio, quant.noble_ratios))  # fmt: skip
    assert np.all(golden == golden[:, :1])
    assert not np.any(np.all(noble[:, 1:] == noble[:, :-1], axis=0))


def test_residuals_of_sigma_delta_covary_as_bernoulli_polynomials():
    """Cov(r_i, r_{i+m}) = B_2(frac(m f)) / 2, B_2(x) = x^2 - x + 1/6, in steps squared."""
    num = 20_000
    phase, f = jnp.asarray((np.arange(num) + 0.5) / num), 0.37
    upper = codes_of(quant.sigma_delta, jnp.full(num, f), phase)
    residuals = np.concatenate([np.zeros((1, num)), np.cumsum(f - np.asarray(upper), axis=0)])
    residuals = residuals + np.asarray(phase) - 0.5
    for lag in (0, 1, 2, 5, 11):
        part = lag * f % 1
        expected = (part**2 - part + 1 / 6) / 2
        found = np.mean(residuals[3] * residuals[3 + lag])
        np.testing.assert_allclose(found, expected, atol=4 / num)


def test_fresh_bits_of_two_calls_are_independent():
    f = jnp.full(40_000, 0.3)
    first, second = codes_of(quant.fresh_bits, f, KEY, CALLS[:2].astype(jnp.int32))
    for upper in (first, second):
        np.testing.assert_allclose(upper.mean(), 0.3, atol=0.01)
    np.testing.assert_allclose(np.mean(np.asarray(first) & np.asarray(second)), 0.09, atol=0.006)


@pytest.mark.parametrize("extra_bits", [0, 1, 3])
def test_extra_bits_give_a_period_and_the_mean_of_a_finer_rounding(extra_bits):
    x, scale = worlds.normal(4, 5, 7), jnp.full((1, 7), 0.25)
    period = 2**extra_bits
    sequence = make(x, scale, format=IntFormat(8), extra_bits=extra_bits)
    values = jax.vmap(sequence.at)(jnp.arange(3 * period))
    np.testing.assert_array_equal(values[:period], values[period : 2 * period])
    fine = jnp.round(x / 0.25 * period) / period * 0.25
    assert_close(jnp.mean(values[:period], axis=0), fine)


@pytest.mark.parametrize("toggle_fn", TOGGLES)
def test_what_saturates_stays_at_the_end_at_every_call(toggle_fn):
    x = jnp.array([[-9.0, -3.0, 3.0, 9.0]])
    sequence = make(x, jnp.ones((1, 1)), format=IntFormat(3), toggle_fn=toggle_fn)
    values = jax.vmap(sequence.at)(CALLS)
    np.testing.assert_array_equal(values, np.broadcast_to([[-3.0, -3.0, 3.0, 3.0]], (40, 1, 4)))


def test_an_affine_grid_of_groups_is_reached_on_both_sides():
    x = worlds.normal(5, 4, 6)
    scale, zero = quant.minmax(x, format=IntFormat(4, signed=False), scale_shape=(4, 2))
    sequence = make(x, scale, zero, format=IntFormat(4, signed=False))
    values = np.asarray(jax.vmap(sequence.at)(jnp.arange(500)))
    steps = values / np.asarray(quant.granularity.expand(scale, x.shape))
    codes = np.round(steps) + np.asarray(quant.granularity.expand(zero, x.shape))
    assert_close(steps, np.round(steps), factor=64)
    assert codes.min() >= 0
    assert codes.max() <= 15
    inside = (
        np.abs(values.mean(0) - np.asarray(x))
        <= np.asarray(quant.granularity.expand(scale, x.shape)) / 500
    )
    ends = (np.asarray(x) == x.min()) | (np.asarray(x) == x.max())
    assert np.all(inside | ends | (codes.min(0) == codes.max(0)))


def test_widths_are_data():
    count = []

    @jax.jit
    def run(bits):
        count.append(1)
        x = worlds.normal(6, 3, 3)
        format = IntFormat(bits)
        scale, zero = quant.absmax(x, format=format, scale_shape=(3, 1))
        return make(x, scale, zero, format=format).at(2) - x

    sizes = [float(jnp.max(jnp.abs(run(bits)))) for bits in np.int32([3, 5, 8])]
    assert len(count) == 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"format": quant.E4M3FN}, TypeError, "expected an IntFormat"),
        ({"format": IntFormat(1)}, ValueError, "at least 2"),
        ({"extra_bits": 17}, ValueError, "expected 0..16"),
        ({"extra_bits": -1}, ValueError, "expected 0..16"),
    ],
)
def test_refusals(change, error, match):
    with pytest.raises(error, match=match):
        make(jnp.ones((2, 2)), jnp.ones((1, 1)), **{"format": IntFormat(4), **change})


def test_a_sequence_wants_the_number_of_its_call():
    sequence = make(jnp.ones((2, 2)), jnp.ones((1, 1)), format=IntFormat(4))
    assert isinstance(sequence, RoundingSequence)
    with pytest.raises(ValueError, match=r"per_call=q\.calls"):
        sequence.at(None)


def test_a_sequence_whose_elements_move_rounds_them_alike():
    x = worlds.normal(7, 6, 8)
    sequence = make(x.reshape(6, 2, 4), jnp.full((6, 2, 1), 0.3), format=IntFormat(4))
    moved = sequence.mapped(lambda a: a.reshape(6, 8).T)
    for call in (0, 1, 5):
        np.testing.assert_array_equal(moved.at(call), sequence.at(call).reshape(6, 8).T)


@pytest.mark.parametrize(("bits", "extra_bits"), [(4, 1), (4, 4), (3, 2), (8, 0), (8, 4), (2, 14)])
def test_alternating_codes_are_the_sequence_in_integers(bits, extra_bits):
    x, scale = worlds.normal(8, 40, 6), jnp.full((1, 6), 0.2)
    format = IntFormat(bits)
    sequence = make(x, scale, format=format, extra_bits=extra_bits)
    alternating = quant.alternating_codes(x, scale, format=format, key=KEY, extra_bits=extra_bits)
    assert alternating.fine.dtype.itemsize == (1 if bits + extra_bits <= 8 else 2)
    for call in (0, 1, 2, 3, 17, 999):
        codes = alternating.at(call)
        assert codes.codes.dtype == format.storage_dtype
        np.testing.assert_array_equal(quant.dequantize(codes, x.dtype), sequence.at(call))
    assert np.all(np.abs(alternating.at(5).codes) <= format.qmax)
    total = sum(np.asarray(alternating.at(i).codes, np.int64) for i in range(2**extra_bits))
    if 2**extra_bits <= 16:
        np.testing.assert_array_equal(total, alternating.fine)  # exactly, over a period


def test_phases_of_places_are_spread_evenly():
    phases = np.asarray(quant.sequences.phases_of_places(jnp.uint32(7), (64, 1024), 3))
    counts = np.bincount(phases.ravel(), minlength=8)
    assert len(counts) == 8
    assert np.all(np.abs(counts - 8192) < 5 * np.sqrt(8192 * 7 / 8))
    pairs = np.bincount((phases[:, 1:] * 8 + phases[:, :-1]).ravel(), minlength=64)
    assert np.sum((pairs - pairs.mean()) ** 2 / pairs.mean()) < 63 + 5 * np.sqrt(126)  # chi square


@pytest.mark.parametrize(("bits", "extra_bits"), [(8, 9), (4, -1)])
def test_what_no_code_holds_is_refused(bits, extra_bits):
    with pytest.raises(ValueError, match="16 at most with the extra bits"):
        quant.alternating_codes(worlds.normal(8, 4), jnp.ones(1), format=IntFormat(bits), key=KEY,
                                extra_bits=extra_bits)  # fmt: skip
