"""The ablation ledger forecasts what quantizing one cell alone does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ablation
from qdiffjax.sites import rules, transform
from tests import worlds
from tests.analysis import coupled
from tests.tolerances import slope

G = jnp.array([0.6, -1.1])


@functools.partial(jax.jit, static_argnames="num_exact")
def forecast(q, steps, num_exact=0):
    """Entries {site: [batch, N]} of a linear functional."""
    phi = lambda x: x @ G  # noqa: E731
    return ablation.forecast(
        q, worlds.X_T, steps, phi, num_exact=num_exact, key=worlds.KEY
    ).contributions


@jax.jit
def rerun(q, steps):
    """The same by running the sampler once for each cell with that cell alone quantized."""
    names = tuple(q.site_inputs)
    cells = jnp.eye(len(names) * worlds.NUM_STEPS, dtype=bool)

    def final(on):
        on = on.reshape(len(names), worlds.NUM_STEPS)
        per_call = {name: on[i] for i, name in enumerate(names)}
        return diffusion.sample(
            precision.gated_call(q), worlds.X_T, steps, key=worlds.KEY, per_call=per_call
        ).x_0

    plain = final(jnp.zeros(cells.shape[0], bool))
    change = (jax.vmap(final)(cells) - plain[None]) @ G
    change = change.reshape(len(names), worlds.NUM_STEPS, worlds.BATCH)
    return {name: change[i].T for i, name in enumerate(names)}


@jax.jit
def derivative(q, steps):
    """The same by forward mode through the run, in the amounts of recorded errors of each cell."""
    record = transform(
        worlds.net_fn, rules.local_errors(precision.quantize_site, follow_rule=False)
    )
    tapped = transform(worlds.net_fn, rules.perturb)
    sample = functools.partial(diffusion.sample, x_T=worlds.X_T, steps=steps, key=worlds.KEY)
    errors = sample(
        lambda x, t, _, state: (*record(q.params, x, t, site_inputs=q.site_inputs), state)
    ).outputs

    def final(amounts):
        taps = jax.tree.map(lambda r, a: r * a.reshape(-1, *[1] * (r.ndim - 1)), errors, amounts)
        call = lambda x, t, taps, state: (*tapped(q.params, x, t, site_inputs=taps), state)  # noqa: E731
        return sample(call, per_call=taps).x_0 @ G

    return jax.jacfwd(final)({name: jnp.zeros(worlds.NUM_STEPS) for name in errors})


@pytest.mark.slow
@pytest.mark.parametrize("sampler", coupled.ALL_SAMPLERS)
def test_an_entry_is_the_derivative_of_the_run_in_the_amount_of_that_cell_s_error(sampler):
    steps, q = coupled.ALL_SAMPLERS[sampler][0], coupled.quantized(6, 6)
    expected, found = derivative(q, steps), forecast(q, steps)
    assert set(found) == set(expected) == set(worlds.NAMES)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sampler", coupled.ALL_SAMPLERS)
def test_at_8_bits_the_forecast_correlates_with_rerunning_each_cell_alone(sampler):
    steps, q = coupled.ALL_SAMPLERS[sampler][0], coupled.quantized(8, 8)
    found, actual = forecast(q, steps), rerun(q, steps)
    found, actual = (np.stack([d[n] for n in worlds.NAMES], axis=-1) for d in (found, actual))
    for b in range(worlds.BATCH):
        assert np.corrcoef(found[b].ravel(), actual[b].ravel())[0, 1] > 0.99
    assert np.linalg.norm(found - actual) < 0.1 * np.linalg.norm(actual)


def test_the_relative_error_of_the_forecast_is_of_the_order_of_the_error():
    sizes, errors = np.array([0.2, 0.1, 0.05]), []
    for size in sizes:
        found = forecast(coupled.nudged(size), worlds.DDIM)
        actual = rerun(coupled.nudged(size), worlds.DDIM)
        difference = [np.linalg.norm(found[n] - actual[n]) for n in actual]
        errors.append(
            np.linalg.norm(difference) / np.linalg.norm([*map(np.linalg.norm, actual.values())])
        )
    assert slope(sizes, errors) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sampler", coupled.ALL_SAMPLERS)
def test_the_last_step_of_an_exact_forecast_is_the_rerun_whatever_the_error(sampler):
    """No step follows it, so that nothing is left to be first order."""
    steps, q = coupled.ALL_SAMPLERS[sampler][0], coupled.quantized(3, 3)
    found, actual = forecast(q, steps, num_exact=len(worlds.NAMES)), rerun(q, steps)
    for name in worlds.NAMES:
        np.testing.assert_allclose(found[name][:, -1], actual[name][:, -1], rtol=1e-9, atol=1e-13)


def test_exact_cells_are_the_largest_of_their_step_and_the_others_keep_first_order():
    q = coupled.quantized(3, 3)
    first, some, every = (
        np.stack([forecast(q, worlds.DDIM, num_exact=k)[n] for n in worlds.NAMES])
        for k in (0, 2, len(worlds.NAMES))
    )
    is_exact = np.isclose(some, every, rtol=1e-9, atol=0)
    is_first_order = np.isclose(some, first, rtol=1e-9, atol=0)
    assert np.all(is_exact | is_first_order)
    assert np.all(np.sum(~is_first_order, axis=0) <= 2)
    # `input` and the layer that reads it commit the same error, so ties are broken by rounding.
    smallest = np.min(np.abs(first), axis=0, where=~is_first_order, initial=np.inf)
    largest = np.max(np.abs(first), axis=0, where=~is_exact, initial=0)
    assert np.all(smallest >= largest * (1 - 1e-9))
    assert np.linalg.norm(every - first) > 0.01 * np.linalg.norm(first)


def test_exact_cells_forecast_reruns_better_than_first_order():
    q, actual = coupled.quantized(5, 5), rerun(coupled.quantized(5, 5), worlds.DDIM)
    errors = [
        sum(np.sum((found[n] - actual[n]) ** 2) for n in actual)
        for found in (
            forecast(q, worlds.DDIM),
            forecast(q, worlds.DDIM, num_exact=len(worlds.NAMES)),
        )
    ]
    assert errors[1] < 0.5 * errors[0]


def test_a_rerun_of_one_cell_is_the_sampler_with_that_cell_gated_on():
    q = coupled.quantized(4, 4)
    xs = diffusion.sample(coupled.calls(q)[0], worlds.X_T, worlds.DDIM).xs
    actual = rerun(q, worlds.DDIM)
    for name in worlds.NAMES:
        on = {site: jnp.asarray(site == name) for site in worlds.NAMES}
        x_0 = jax.jit(ablation.rerun)(q, xs, worlds.DDIM, 2, on)
        np.testing.assert_allclose((x_0 - xs[-1]) @ G, actual[name][:, 2], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("num_exact", [-1, 99])
def test_a_number_of_exact_cells_that_there_are_not_is_refused(num_exact):
    with pytest.raises(ValueError, match="num_exact"):
        forecast(coupled.quantized(), worlds.DDIM, num_exact=num_exact)


def test_a_functional_that_is_flat_at_the_full_run_has_no_forecast():
    q = coupled.quantized()
    x_0 = diffusion.sample(coupled.calls(q)[0], worlds.X_T[:1], worlds.DDIM).x_0[0]
    flat = lambda x: jnp.sum((x - x_0) ** 2)  # noqa: E731
    found = jax.jit(lambda: ablation.forecast(q, worlds.X_T[:1], worlds.DDIM, flat))()
    assert found.change is None
    for entries in found.contributions.values():
        np.testing.assert_allclose(entries, 0, atol=1e-12)
