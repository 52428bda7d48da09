"""Predicted variance of rounding at a network's sites: dense derivatives, and real roundings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ledger, site_variances
from qdiffjax.denoiser import Denoiser
from qdiffjax.quant import ActivationGrid, IntFormat
from qdiffjax.sites import list_sites, transform
from tests import worlds
from tests.analysis import coupled
from tests.worlds import normal

STEPS = coupled.MULTISTEP
PROBES = coupled.axes(worlds.X_T)


def how(scale, bits, key=None):
    return ActivationGrid(IntFormat(jnp.int32(bits)), jnp.float64(scale), key=key)


def test_the_variance_of_one_rounding_is_its_two_point_variance_or_a_twelfth():
    x = np.array([0.3, 0.5, -0.7, 1.0, 0.0, 30.0])
    f = np.array([0.6, 0.0, 0.6, 0.0, 0.0])
    for random, share in ((None, 12), (worlds.KEY, 6)):
        average = site_variances.average_variance(x, how(0.5, 4, random))
        np.testing.assert_allclose(average[:5], 0.25 / share * (f > 0), atol=1e-15)
        assert average[5] == 0  # clipped: an error, but no rounding
    keys = jax.random.split(worlds.KEY, 40_000)
    drawn = jax.vmap(lambda key: precision.round_activation(jnp.asarray(x), how(0.5, 4, key)))(keys)
    np.testing.assert_allclose(np.var(drawn, axis=0)[:5], 0.25 * f * (1 - f), atol=2e-3)


def test_groups_along_a_named_axis_have_steps_of_their_own_range():
    """Four neighbours of a column, 0 to 15 steps: of 1/4, 1/2, 1 and 2; two are off their grid."""
    steps = np.array([[0.25, 0.5], [1.0, 2.0]])
    inside = np.array([0.0, 4.4, 9.7, 15.0])
    x = (inside[None, :, None] * steps[:, None]).reshape(8, 2)
    grid = ActivationGrid(IntFormat(4, signed=False), group_size=4)
    found = site_variances.average_variance(jnp.asarray(x), grid, axes=(1,), group_axis=0)
    off = np.array([0.0, 1.0, 1.0, 0.0])
    expected = (off[None, :, None] * steps[:, None] ** 2 / 12).reshape(8, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def tiny_fn(params, x, t):
    """Two dots and a product of activations, no batch statistics."""
    h = jnp.tanh(x @ params["in"] + t / 40)
    g = h @ params["out"]
    return g + jnp.einsum("bi,bi->b", h, h)[:, None] * g / 8


TINY = {"in": normal(60, 2, 3), "out": normal(61, 3, 2)}
SITES = list_sites(tiny_fn, TINY, worlds.X_T, jnp.float64(1))


# Of each site; no two alike, as a second rounding on the same grid would add nothing.
STEP_SIZES = 2.0**-10 * np.array([1, 0.83, 1.17, 0.9, 1.1])
SCALES = dict(zip((s.name for s in SITES), STEP_SIZES, strict=True))


def quantized(key=None):
    inputs = {
        s.name: precision.SiteQuant(None, (how(SCALES[s.name], 16, key),) * len(s.activations))
        for s in SITES
    }
    return precision.Quantized(Denoiser(tiny_fn, TINY), inputs)


def test_activation_variances_are_squared_derivatives_by_every_rounded_element():
    """x_0 as a function of additions to every operand of every call, differentiated densely."""
    q = quantized()
    found = jax.jit(
        lambda x: site_variances.activation_variances(q, x, STEPS, PROBES)
    )(worlds.X_T)  # fmt: skip

    def tap(site, op, operands, inputs):
        return op(*(o + i for o, i in zip(operands, inputs, strict=True))), None

    tapped = transform(tiny_fn, tap)
    names = [s.name for s in SITES]
    operands = {s.name: s.shapes for s in SITES}
    assert len(names) == 5
    assert sorted(found.contributions) == sorted(names)

    def final(taps):
        def call(x, t, inputs, state=()):
            return tapped(TINY, x, t, site_inputs=inputs)[0], None, state

        return diffusion.sample(call, worlds.X_T[:1], STEPS, per_call=taps).x_0[0]

    zeros = {
        name: tuple(jnp.zeros((worlds.NUM_STEPS, *(1 if n == worlds.BATCH else n for n in shape)))
                    for shape in operands[name])
        for name in names
    }  # fmt: skip
    jacobians = jax.jit(jax.jacrev(final))(zeros)
    for site in SITES:
        expected = 0.0
        for index in site.activations:
            d = np.asarray(jacobians[site.name][index])
            r = SCALES[site.name] ** 2 / 12
            expected = expected + np.sum(
                d**2 * r, axis=(0, *range(2, d.ndim))
            )  # over the pixels of x_0 and the elements, not the steps
        np.testing.assert_allclose(found.contributions[site.name][0], expected, rtol=1e-10)


def test_their_sum_is_the_mean_squared_error_of_stochastic_rounding():
    """Each rounding with bits of its own, 4096 starts within some steps of the grid of one another.

    At one start alone neither variance is right: fractional parts are those of the full-precision
    run at the first rounding, and of any value once earlier roundings have moved their operand.
    """
    x_T, num, probe = worlds.X_T[:1], 4096, PROBES[:, :1]
    q = quantized(worlds.KEY)
    found = jax.jit(
        lambda x: site_variances.activation_variances(q, x, STEPS, probe)
    )(x_T)  # fmt: skip
    total = float(ledger.total(found)[0])
    full = precision.full_call(q)

    def error(key):
        keys = jax.random.split(key, (worlds.NUM_STEPS, len(SITES)))
        start = x_T + 64 * 2.0**-10 * (jax.random.uniform(key, x_T.shape) - 0.5)

        def call(x, t, keys, state=()):
            inputs = {
                s.name: precision.SiteQuant(None, tuple(
                    how(SCALES[s.name], 16, jax.random.fold_in(k, i))
                    for i in range(len(s.activations))
                ))
                for s, k in zip(SITES, keys, strict=True)
            }  # fmt: skip
            return precision.quantized_call(precision.Quantized(Denoiser(tiny_fn, TINY), inputs))(
                x, t, None
            )

        rounded = diffusion.sample(call, start, STEPS, per_call=keys).x_0
        return rounded - diffusion.sample(full, start, STEPS).x_0

    errors = np.asarray(jax.jit(jax.vmap(error))(jax.random.split(worlds.KEY, num)))
    squares = np.sum(errors**2, axis=(1, 2))
    assert abs(np.mean(squares) - total) < 3 * np.std(squares) / num**0.5 + 0.02 * total
    assert total > 1e-6


@pytest.mark.parametrize("stochastic", [False, True], ids=["ode", "sde"])
def test_weight_variances_sum_over_steps_before_squaring(stochastic):
    """|A|_F^2 by the dense derivative of the whole sampler by the weight."""
    steps, key = (worlds.DDPM, worlds.KEY) if stochastic else (STEPS, None)
    variances = {"in": 1e-4, "out": np.abs(normal(62, 1, 2))}
    found = jax.jit(lambda x: site_variances.weight_variances(
        quantized(), x, steps, variances, PROBES, key=key
    ))(worlds.X_T)  # fmt: skip

    def final(params):
        return diffusion.sample(diffusion.bind(tiny_fn, params), worlds.X_T, steps, key=key).x_0

    jacobians = jax.jit(jax.jacrev(final))(TINY)
    for name, r in variances.items():
        expected = np.sum(np.asarray(jacobians[name]) ** 2 * r, axis=(1, 2, 3))
        np.testing.assert_allclose(found[name], expected, rtol=1e-10)


def test_weight_variances_hold_the_gradients_of_one_sample_at_a_time():
    """Eight samples more take less memory than a gradient of one."""
    wide = {"in": normal(63, 2, 1024), "out": normal(64, 1024, 2)}
    q = precision.Quantized(Denoiser(tiny_fn, wide), {})

    def bytes_of(num):
        x_T, probes = (jax.ShapeDtypeStruct(shape, np.float64) for shape in ((num, 2), (1, num, 2)))
        run = jax.jit(lambda x_T, probes: site_variances.weight_variances(
            q, x_T, STEPS, {"in": 1e-4}, probes
        ))  # fmt: skip
        return run.lower(x_T, probes).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(12) - bytes_of(4) < wide["in"].nbytes
