"""Scale rules of other systems, written down from their definitions, as arguments of ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, fake_quant, quantization_error, scale_from_range
from qdiffjax.quant.calibration import absmax, covering, lp, minmax, minmax_range
from qdiffjax.quant.formats.floats import E2M1, E4M3FN
from qdiffjax.quant.formats.logarithmic import E8M0
from qdiffjax.quant.rounding import nearest_even
from tests.tolerances import assert_close

GOLDEN = jnp.array([-1, -0.35, -0.05, 0, 0.1, 0.25, 0.7, 1.5])
FULL = IntFormat(4, narrow=False)
UNSIGNED = IntFormat(4, signed=False)


def _data(seed, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=96) + shift)


def _codes(x, scale, zero, low, high):
    return (np.clip(np.round(np.asarray(x) / scale) + zero, low, high) - zero) * scale


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (UNSIGNED, [-1, -0.3333, 0, 0, 0.1667, 0.3333, 0.6667, 1.5]),
        (
            IntFormat(8, signed=False),
            [-1, -0.3529, -0.0490, 0, 0.0980, 0.2549, 0.6961, 1.5],
        ),
    ],
)
def test_affine_golden_vector(format, expected):
    got = fake_quant(GOLDEN, *minmax(GOLDEN, format=format), format=format)
    np.testing.assert_allclose(got, expected, atol=5.1e-5)


@pytest.mark.parametrize(
    ("overhang", "expected"),
    [
        (0.0, [-1.0714, -0.4286, 0, 0, 0, 0.2143, 0.6429, 1.5]),
        (0.5, [-1, -0.4, 0, 0, 0, 0.2, 0.8, 1.4]),  # the largest value is lost
    ],
)
def test_symmetric_golden_vectors_of_both_bounds(overhang, expected):
    scale, _ = absmax(GOLDEN, format=FULL, overhang=overhang)
    got = fake_quant(GOLDEN, scale, format=FULL)
    np.testing.assert_allclose(got, expected, atol=5.1e-5)


def test_aqt_bounds_are_three_overhangs():
    """AQT: bound 127, 127.5 (the default) or 128 for 8 bits, by preserve_max_val and zero."""
    for overhang, bound in ((0.0, 127), (0.5, 127.5), (1.0, 128)):
        scale, _ = absmax(GOLDEN, format=IntFormat(8), overhang=overhang)
        assert_close(scale, np.array([1.5 / bound]))


def test_torchao_symmetric_is_half_an_overhang_on_the_full_range():
    """scale = absmax / ((qmax - qmin) / 2), codes -2^(b-1) .. 2^(b-1) - 1."""
    x = _data(0)
    scale = np.abs(x).max() / ((7 - -8) / 2)
    ours = fake_quant(x, *absmax(x, format=FULL, overhang=0.5), format=FULL)
    assert_close(ours, _codes(x, scale, 0, -8, 7))


@pytest.mark.parametrize("sign", [1, -1])
def test_torchao_no_clipping_rule_is_covering(sign):
    """scale = max(min(x, 0) / qmin, max(x, 0) / qmax)."""
    x = sign * jnp.concatenate([_data(1), jnp.array([4.0, -4.2])])
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    scale, zero = covering(x, format=FULL)
    assert zero is None
    assert_close(scale, np.array([max(low / -8, high / 7)]))
    assert float(jnp.max(jnp.abs(fake_quant(x, scale, format=FULL) - x))) <= scale[0] / 2 + 1e-12


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_torchao_affine_rule(shift):
    """zero-included, zero = clamp(qmin - round(min / s)), codes 0..15."""
    x = _data(2, shift)
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    scale = (high - low) / 15
    zero = np.clip(0 - np.round(low / scale), 0, 15)
    ours = fake_quant(x, *minmax(x, format=UNSIGNED), format=UNSIGNED)
    assert_close(ours, _codes(x, scale, zero, 0, 15))


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_q_diffusion_and_q_dit_affine_rules_are_the_raw_range_with_the_zero_point_clipped(shift):
    """Q-Diffusion: z = round(-min(xmin, 0) / s); Q-DiT: z clamped to the codes; s from raw ends."""
    x = _data(3, shift)
    low, high = float(x.min()), float(x.max())
    s = (high - low) / 15
    scale, zero = minmax(x, format=UNSIGNED, include_zero=False)
    assert_close(scale, np.array([s]))
    theirs = {
        "q-diffusion": np.round(-min(low, 0) / s),
        "q-dit": np.clip(np.round(-low / s), 0, 15),
    }
    ours = {"q-diffusion": jnp.maximum(zero, 0), "q-dit": jnp.clip(zero, 0, 15)}
    for name, z in theirs.items():
        np.testing.assert_array_equal(ours[name], [z])
        got = fake_quant(x, scale, ours[name], format=UNSIGNED)
        assert_close(got, _codes(x, s, z, 0, 15))


def test_clipped_zero_point_loses_data_far_from_zero_and_the_free_one_does_not():
    """U(2, 3) at 8 bits: Q-Diffusion's largest error is 2; zero-included 3/510; free 1/510."""
    x, format = jnp.linspace(2.0, 3.0, 1001), IntFormat(8, signed=False)
    scale, zero = minmax(x, format=format, include_zero=False)
    largest = lambda s, z: float(jnp.max(jnp.abs(fake_quant(x, s, z, format=format) - x)))  # noqa: E731
    assert_close(largest(scale, jnp.maximum(zero, 0) * 0), 2.0)
    assert largest(scale, zero) <= 1.0001 / 510
    assert 0.99 * 3 / 510 < largest(*minmax(x, format=format)) <= 1.0001 * 3 / 510


@pytest.mark.parametrize("value", [2.3, -1e20, 1e-20])
def test_range_that_floats_cannot_tell_from_a_point_is_widened_to_zero(value):
    x = jnp.full((5,), value, jnp.float32)
    scale, zero = minmax(x, format=UNSIGNED, include_zero=False)
    np.testing.assert_array_equal(zero, [0 if value > 0 else 15])
    assert_close(fake_quant(x, scale, zero, format=UNSIGNED), np.full(5, value, np.float32))


def test_tfmq_softmax_rule_is_a_symmetric_unsigned_grid():
    """always_zero: z = 0, s = max / (2^b - 1); its symmetric rule is 2 absmax / (2^b - 2)."""
    x = jax.nn.softmax(_data(4))
    assert_close(absmax(x, format=UNSIGNED)[0], np.array([x.max() / 15]))
    assert_close(absmax(x, format=FULL)[0], np.array([2 * x.max() / 14]))


def test_q_diffusion_search_is_lp_over_its_shrinks():
    """80 shrinks 1 - i / 100, s = (M - m) / (2^b - 1), z = round(-m / s), mean |e|^2.4."""
    x = _data(5)
    ratios = 1 - np.arange(80) / 100

    def theirs(ratio):
        m, M = ratio * float(x.min()), ratio * float(x.max())
        s = (M - m) / 15
        x_hat = _codes(x, s, np.round(-m / s), 0, 15)
        return np.mean(np.abs(x_hat - np.asarray(x)) ** 2.4), x_hat

    best = min((theirs(r) for r in ratios), key=lambda pair: pair[0])[1]
    grid = lp(x, format=UNSIGNED, symmetric=False, ratios=ratios)
    assert_close(fake_quant(x, *grid, format=UNSIGNED), best)


def test_q_dit_search_is_lp_over_a_thousandth_each():
    """s = absmax (1 - i / 1000) / (2^(b-1) - 1), i < 100, codes -8..7, mean |e|^2.4."""
    x = _data(6)
    ratios = 1 - np.arange(100) / 1000

    def theirs(ratio):
        x_hat = _codes(x, ratio * float(np.abs(x).max()) / 7, 0, -8, 7)
        return np.mean(np.abs(x_hat - np.asarray(x)) ** 2.4), x_hat

    best = min((theirs(r) for r in ratios), key=lambda pair: pair[0])[1]
    grid = lp(x, format=FULL, ratios=ratios)
    assert_close(fake_quant(x, *grid, format=FULL), best)


def test_overhang_of_an_affine_grid_puts_the_ends_on_the_outer_thresholds():
    low, high = jnp.array([-1.0]), jnp.array([2.0])
    scale, zero = scale_from_range(low, high, qmin=0, qmax=15, symmetric=False, overhang=0.5)
    assert_close(scale, np.array([3 / 16]))
    np.testing.assert_array_equal(zero, [np.round(-0.5 + 16 / 3)])


def test_arguments_may_be_traced():
    low, high = minmax_range(_data(7), (1,))

    def scale(qmax, overhang):
        return scale_from_range(
            low, high, qmin=-qmax, qmax=qmax, symmetric=True, overhang=overhang
        )[0]

    qmax, overhang = jnp.array([7.0, 127.0]), jnp.array([0.5, 0.0])
    traced = jax.jit(jax.vmap(scale))(qmax, overhang)
    np.testing.assert_array_equal(traced, [scale(7, 0.5), scale(127, 0.0)])


def test_fp8_golden_vector_of_absmax_scaling():
    """ModelOpt: x * 448 / absmax, cast to e4m3fn."""
    got = fake_quant(GOLDEN, *absmax(GOLDEN, format=E4M3FN), format=E4M3FN)
    expected = [-0.9643, -0.3482, -0.0502, 0, 0.1004, 0.2411, 0.6964, 1.5]
    np.testing.assert_allclose(got, expected, atol=5.1e-5)


def test_casts_of_peers_at_ties_and_beyond_the_end():
    """A cast to e4m3fn makes NaN of 465 and more, a quantizer saturates; e2m1 ties go to even."""
    one = jnp.ones(1)
    x = jnp.array([448.0, 464, 465, jnp.inf, -1e9])
    np.testing.assert_array_equal(fake_quant(x, one, format=E4M3FN), [448, 448, 448, 448, -448])
    ties = jnp.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7])
    np.testing.assert_array_equal(fake_quant(ties, one, format=E2M1), [0, 1, 1, 2, 2, 4, 4, 6])
    np.testing.assert_array_equal(E8M0.round(jnp.array([1.5, 1.49]), nearest_even), [2, 1])
    integers = fake_quant(jnp.array([128.0, -129, 200]), one, format=IntFormat(8, narrow=False))
    np.testing.assert_array_equal(integers, [127, -128, 127])


def test_golden_errors_of_4096_normal_numbers():
    """Computed once with the peers' own code, to four digits."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=4096))
    unsigned, ratios = IntFormat(8, signed=False), 1 - np.arange(80) / 100
    grids = {
        6.645e-5: (unsigned, minmax(x, format=unsigned)),
        7.906e-5: (IntFormat(8), absmax(x, format=IntFormat(8))),
        1.925e-2: (UNSIGNED, minmax(x, format=UNSIGNED)),
        2.619e-2: (IntFormat(4), absmax(x, format=IntFormat(4))),
        2.287e-2: (FULL, absmax(x, format=FULL, overhang=0.5)),
        1.143e-2: (UNSIGNED, lp(x, format=UNSIGNED, symmetric=False, ratios=ratios)),
    }
    for expected, (format, grid) in grids.items():
        mse = np.mean(np.asarray(quantization_error(x, *grid, format=format)) ** 2)
        np.testing.assert_allclose(mse, expected, rtol=5e-4)
