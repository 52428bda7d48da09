"""Forms and scalar functions: sound under rounding, and no wider than they must be."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.analysis.certificates import forms, functions

SMOOTH = sorted(functions.SCALARS)


def exact_dot(a, b):
    return sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)),
               Fraction(0))  # fmt: skip


def dot(v, w):
    return jnp.einsum("k,k->", v, w)


def holds(form, value: Fraction) -> bool:
    low, high = (Fraction(float(v)) for v in forms.bounds(form))
    return low <= value <= high


def test_the_exact_sum_is_inside_where_arithmetic_to_nearest_loses_it():
    # 1e16 + 1 - 1e16 = 1, but to nearest it is 0, so the interval [0, 0] would exclude it.
    a, w = np.array([1e16, 1.0, -1e16]), np.ones(3)
    form = forms.linear(dot, forms.exactly(a), jnp.asarray(w), length=3)
    assert exact_dot(a, w) == 1
    assert float(form.mid) == 0.0
    assert holds(form, Fraction(1))
    third = forms.scale(forms.exactly(jnp.array(3.0)), jnp.array(1 / 3))
    assert float(third.mid) == 1.0  # to nearest; 3 fl(1/3) < 1
    assert holds(third, Fraction(3) * Fraction(1 / 3))
    assert float(forms.bounds(third)[0]) < 1.0


def test_bounds_hold_exactly_for_random_forms_and_every_symbol():
    rng = np.random.default_rng(0)
    compute = jax.jit(lambda a, b, w: (
        forms.linear(dot, a, w, length=6), forms.bilinear(dot, a, b, length=6),
        forms.subtract(a, b),
    ))  # fmt: skip
    for _ in range(60):
        scale = 10.0 ** rng.integers(-8, 8, 6)
        parts = [forms.Form(*(jnp.asarray(x) for x in (
            scale * rng.normal(size=6), scale * rng.normal(size=(3, 6)) * 0.1,
            np.zeros(6)))) for _ in range(2)]  # fmt: skip
        w = scale[::-1] * rng.normal(size=6)
        by_known, by_form, gap = compute(*parts, jnp.asarray(w))
        eps = rng.choice([-1, 1], 3)
        a, b = (
            [Fraction(float(f.mid[i])) + sum(
                int(e) * Fraction(float(g)) for e, g in zip(eps, f.gens[:, i], strict=True))
             for i in range(6)] for f in parts
        )  # fmt: skip
        assert holds(by_known, sum(x * Fraction(float(y)) for x, y in zip(a, w, strict=True)))
        assert holds(by_form, sum(x * y for x, y in zip(a, b, strict=True)))
        for i in range(6):
            one = forms.move(lambda v, i=i: v[i], gap)
            assert holds(one, a[i] - b[i])


def test_what_cancels_in_reality_cancels_in_forms():
    x = forms.box(-jnp.ones(4), jnp.ones(4))
    assert float(forms.magnitude(forms.subtract(x, x)).max()) < 1e-14
    no_symbols = forms.between(-jnp.ones(4), jnp.ones(4))
    assert float(forms.magnitude(forms.subtract(no_symbols, no_symbols)).min()) >= 2.0


def test_a_box_has_a_symbol_for_each_element_and_an_interval_none():
    low, high = jnp.array([-1.0, 2.0]), jnp.array([3.0, 2.5])
    assert len(forms.between(low, high)) == 0
    np.testing.assert_allclose(forms.box(low, high).gens, np.diag([2.0, 0.25]), rtol=1e-12)


def test_what_is_unknown_stays_unknown():
    zero = forms.exactly(jnp.zeros(()))
    log = functions.apply(functions.SCALARS["log"], forms.between(-jnp.ones(()), jnp.ones(())))
    for lost in (log, forms.scale(log, jnp.zeros(())), forms.bilinear(jnp.multiply, log, zero,
                                                                      length=1)):  # fmt: skip
        assert np.isinf(forms.settle(lost).rad)
        assert np.isinf(functions.apply(functions.SCALARS["tanh"], lost).rad) or np.isnan(
            functions.apply(functions.SCALARS["tanh"], lost).rad
        )


LONG = {
    "tanh": np.tanh, "exp": np.exp, "log": np.log, "log1p": np.log1p, "sqrt": np.sqrt,
    "sin": np.sin, "cos": np.cos, "square": lambda x: x * x, "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip


def arguments(name, num=4001):
    low = functions.SCALARS[name].lowest
    return np.linspace(-6.0, 6.0, num) if low < -1 else low + np.geomspace(1e-3, 50.0, num)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="no extended precision here")
@pytest.mark.parametrize("name", sorted(LONG))
def test_the_library_is_as_accurate_as_certificates_assume(name):
    x = arguments(name)
    truth = LONG[name](x.astype(np.longdouble))
    found = np.asarray(functions.SCALARS[name].value(jnp.asarray(x))).astype(np.longdouble)
    assert np.max(np.abs(found - truth) / (1 + np.abs(truth))) < functions.ACCURACY / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_are_derivatives_and_their_ranges_are_tight(name):
    f = functions.SCALARS[name]
    x = jnp.asarray(arguments(name))
    slope = jax.vmap(jax.grad(f.value))(x)
    np.testing.assert_allclose(f.slope(x), slope, rtol=1e-12, atol=1e-12)
    curvature = jax.vmap(jax.grad(f.slope))(x)
    rng = np.random.default_rng(1)
    ends = np.sort(rng.integers(0, len(x), (50, 2)), axis=1)
    for of, values in ((f.slope_range, slope), (f.curvature_range, curvature)):
        low, high = of(x[ends[:, 0]], x[ends[:, 1]])
        for (i, j), least, most in zip(ends, low, high, strict=True):
            inside = values[i : j + 1]
            assert least <= inside.min()
            assert inside.max() <= most
            if name not in ("sin", "cos"):  # whose ranges use that they are 1-Lipschitz
                slack = 1e-4 * (1 + np.abs(inside).max())
                assert least >= inside.min() - slack
                assert most <= inside.max() + slack


def test_the_line_of_a_function_has_the_slope_of_its_secant():
    """Of x^2 over [a, b] it is a + b, at the middle, and x^2 leaves it by +-(b - a)^2 / 8."""
    f = functions.SCALARS["square"]
    a, b = jnp.array([-1.0, 0.0, 0.5]), jnp.array([2.0, 1.0, 4.0])
    line = functions.fit(f.value, f.slope_range, a, b)
    np.testing.assert_allclose(line.tilt, a + b, rtol=1e-12)
    np.testing.assert_allclose(line.centre, (a + b) / 2, rtol=1e-12)
    lowest, secant = ((a + b) / 2) ** 2, (a**2 + b**2) / 2
    np.testing.assert_allclose(line.level, (lowest + secant) / 2, rtol=0.05)
    np.testing.assert_allclose(line.rad, (b - a) ** 2 / 8, rtol=0.2)
    assert np.all(line.rad >= (b - a) ** 2 / 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_lines_enclose_the_function_and_are_nearly_the_best_of_their_slope(name):
    f = functions.SCALARS[name]
    x = arguments(name)
    rng = np.random.default_rng(2)
    ends = np.sort(rng.integers(0, len(x), (40, 2)), axis=1)
    line = functions.fit(f.value, f.slope_range, *(jnp.asarray(x[ends[:, i]]) for i in (0, 1)))
    for k, (i, j) in enumerate(ends):
        inside = np.linspace(x[i], x[j], 2000)
        rest = np.asarray(f.value(jnp.asarray(inside))) - (
            line.tilt[k] * (inside - line.centre[k]) + line.level[k]
        )
        assert np.abs(rest).max() <= line.rad[k]
        best = (rest.max() - rest.min()) / 2
        if name not in ("sin", "cos") and x[j] - x[i] < 4:
            assert line.rad[k] <= 1.5 * best + 1e-12


@pytest.mark.slow
def test_the_mean_slope_times_the_change_is_the_change():
    rng = np.random.default_rng(3)
    for name in ("tanh", "logistic", "exp", "square"):
        f = functions.SCALARS[name]
        low = rng.normal(size=20)
        x = forms.box(jnp.asarray(low), jnp.asarray(np.maximum(low, rng.normal(size=20) + 3)))
        dx = forms.linear(lambda v, w: v * w, x, jnp.full(20, 0.1), length=1)
        slope = functions.mean_slope(f, x, dx)
        product = forms.bilinear(jnp.multiply, slope, dx, length=1)
        for _ in range(50):
            eps = rng.uniform(-1, 1, len(x))
            at, change = (np.asarray(p.mid + jnp.einsum("k,ki->i", eps, p.gens)) for p in (x, dx))
            low, high = forms.bounds(product)
            true = np.asarray(f.value(jnp.asarray(at + change)) - f.value(jnp.asarray(at)))
            assert np.all((low <= true + 1e-14) & (true - 1e-14 <= high))


@pytest.mark.parametrize("low", [-1.0, -1e-20, 0.0, 2.0, -3.0])
def test_relu_is_exact_where_decided_and_the_best_line_elsewhere(low):
    x = forms.box(jnp.array([low]), jnp.array([low + 2.0]))
    least, most = (float(b[0]) for b in forms.bounds(functions.relu(x)))
    assert least <= max(low, 0.0)
    assert max(low + 2.0, 0.0) <= most
    share = min(max(-low, 0.0), 2.0) / 2  # of the width; the triangle under the secant
    assert most - least <= max(low + 2, 0) - max(low, 0) + 2 * share * (1 - share) + 1e-13
