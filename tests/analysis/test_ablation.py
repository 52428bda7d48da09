"""The ablation ledger forecasts what quantizing one cell alone does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, program
from qdiffjax.analysis import ledger
from qdiffjax.program import rules
from tests.analysis import labs

G = jnp.array([0.6, -1.1])


@jax.jit
def forecast(q, steps):
    """Entries {site: [batch, N]} of a linear functional."""
    return ledger.ablation(q, labs.X_T, steps, lambda x: x @ G, key=labs.KEY).contributions


@jax.jit
def rerun(q, steps):
    """The same by running the sampler once for each cell with that cell alone quantized."""
    names = tuple(q.site_inputs)
    cells = jnp.eye(len(names) * labs.NUM_STEPS, dtype=bool)

    def final(on):
        on = on.reshape(len(names), labs.NUM_STEPS)
        per_call = {name: on[i] for i, name in enumerate(names)}
        return diffusion.sample(
            program.gated_call(q), labs.X_T, steps, key=labs.KEY, per_call=per_call
        ).x_0

    plain = final(jnp.zeros(cells.shape[0], bool))
    change = (jax.vmap(final)(cells) - plain[None]) @ G
    change = change.reshape(len(names), labs.NUM_STEPS, labs.BATCH)
    return {name: change[i].T for i, name in enumerate(names)}


@jax.jit
def derivative(q, steps):
    """The same by forward mode through the run, in the amounts of recorded errors of each cell."""
    record = program.transform(labs.net_fn, rules.local_errors(rules.quantize, follow_rule=False))
    tapped = program.transform(labs.net_fn, rules.perturb)
    sample = functools.partial(diffusion.sample, x_T=labs.X_T, steps=steps, key=labs.KEY)
    errors = sample(lambda x, t, _: record(q.params, x, t, site_inputs=q.site_inputs)).outputs

    def final(amounts):
        taps = jax.tree.map(lambda r, a: r * a.reshape(-1, *[1] * (r.ndim - 1)), errors, amounts)
        call = lambda x, t, taps: tapped(q.params, x, t, site_inputs=taps)  # noqa: E731
        return sample(call, per_call=taps).x_0 @ G

    return jax.jacfwd(final)({name: jnp.zeros(labs.NUM_STEPS) for name in errors})


@pytest.mark.parametrize("sampler", labs.SAMPLERS)
def test_an_entry_is_the_derivative_of_the_run_in_the_amount_of_that_cell_s_error(sampler):
    steps, q = labs.SAMPLERS[sampler][0], labs.quantized(6, 6)
    expected, found = derivative(q, steps), forecast(q, steps)
    assert set(found) == set(expected) == set(labs.NAMES)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sampler", labs.SAMPLERS)
def test_at_8_bits_the_forecast_correlates_with_rerunning_each_cell_alone(sampler):
    steps, q = labs.SAMPLERS[sampler][0], labs.quantized(8, 8)
    found, actual = forecast(q, steps), rerun(q, steps)
    found, actual = (np.stack([d[n] for n in labs.NAMES], axis=-1) for d in (found, actual))
    for b in range(labs.BATCH):
        assert np.corrcoef(found[b].ravel(), actual[b].ravel())[0, 1] > 0.99
    assert np.linalg.norm(found - actual) < 0.1 * np.linalg.norm(actual)


def test_the_relative_error_of_the_forecast_is_of_the_order_of_the_error():
    sizes, errors = np.array([0.2, 0.1, 0.05]), []
    for size in sizes:
        found = forecast(labs.nudged(size), labs.DDIM)
        actual = rerun(labs.nudged(size), labs.DDIM)
        difference = [np.linalg.norm(found[n] - actual[n]) for n in actual]
        errors.append(
            np.linalg.norm(difference) / np.linalg.norm([*map(np.linalg.norm, actual.values())])
        )
    assert labs.slope(sizes, errors) == pytest.approx(1, abs=0.1)


def test_a_functional_that_is_flat_at_the_full_run_has_no_forecast():
    q = labs.quantized()
    x_0 = diffusion.sample(labs.calls(q)[0], labs.X_T[:1], labs.DDIM).x_0[0]
    flat = lambda x: jnp.sum((x - x_0) ** 2)  # noqa: E731
    found = jax.jit(lambda: ledger.ablation(q, labs.X_T[:1], labs.DDIM, flat))()
    assert found.change is None
    for entries in found.contributions.values():
        np.testing.assert_allclose(entries, 0, atol=1e-12)
