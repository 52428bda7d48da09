"""Inputs by call: a run whose steps are half those of one network and half those of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ablation, ledger, prediction, site_variances
from tests import worlds
from tests.analysis import coupled
from tests.tolerances import assert_close

BITS = (3, 5)  # of activations, coarse and fine
SITES = ("in", "output")


def quantized(bits) -> precision.Quantized:
    """The network with two of its sites quantized."""
    q = coupled.quantized(4, bits)
    return precision.Quantized(q.denoiser, {name: q.site_inputs[name] for name in SITES})


FIRST, SECOND = map(quantized, BITS)
G = jnp.array([0.7, -0.4])
PROBES = coupled.axes(worlds.X_T)[:2]


def mixed(is_first) -> dict:
    """Inputs by call: those of FIRST where told, else those of SECOND."""
    return jax.tree.map(
        lambda a, b: jnp.stack([a if first else b for first in is_first]),
        FIRST.site_inputs, SECOND.site_inputs,
    )  # fmt: skip


HALVES = np.arange(worlds.NUM_STEPS) % 2 == 0
MIXED, COMPLEMENT = mixed(HALVES), mixed(~HALVES)


def of_cells(make):
    """A ledger's entries by (site, step) on the full-precision run."""
    return jax.jit(lambda q, per_call: make(q, per_call).contributions)


CELLS = {
    "forecast": lambda q, per_call: ablation.forecast(
        q, worlds.X_T, worlds.DDIM, lambda x: x @ G, per_call=per_call
    ),
    "forecast, some exact": lambda q, per_call: ablation.forecast(
        q, worlds.X_T, worlds.DDIM, lambda x: x @ G, num_exact=2, per_call=per_call
    ),
    "activation_variances": lambda q, per_call: site_variances.activation_variances(
        q, worlds.X_T, worlds.DDIM, PROBES, per_call=per_call
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if "exact" in n else []) for n in CELLS],
)
def test_cells_on_the_full_precision_run_are_those_of_the_network_of_their_step(name):
    cells = of_cells(CELLS[name])
    found = cells(SECOND, MIXED)
    first, second = cells(FIRST, None), cells(SECOND, None)
    assert any(np.any(first[n] != second[n]) for n in first)
    for site in first:
        expected = np.where(HALVES[None], first[site], second[site])
        assert_close(found[site], expected, factor=1e3)


def test_first_order_is_the_sum_of_the_steps_of_both_networks():
    """Linear in the local errors, each of which is that of its own step's network."""
    xs = diffusion.sample(precision.full_call(FIRST), worlds.X_T, worlds.DDIM).states

    @jax.jit
    def predicted(q, per_call):
        return prediction.predict_first_order(q, xs, worlds.DDIM, per_call=per_call)

    found = predicted(SECOND, MIXED)
    both = predicted(FIRST, None) + predicted(SECOND, None)
    assert_close(found + predicted(SECOND, COMPLEMENT), both, factor=1e3)
    assert_close(found[1], predicted(FIRST, None)[1], factor=1e3)  # one step: that of FIRST
    assert np.max(np.abs(found - predicted(SECOND, None))) > 1e-3


def test_injecting_all_errors_gives_the_run_of_the_networks_of_each_step():
    ones = dict.fromkeys(SITES, jnp.ones(worlds.NUM_STEPS))
    found = jax.jit(
        lambda per_call: ledger.inject(SECOND, worlds.X_T, worlds.DDIM, ones, per_call=per_call)
    )(MIXED)
    call = precision.quantized_call(SECOND)
    expected = diffusion.sample(call, worlds.X_T, worlds.DDIM, per_call=MIXED).x_0
    assert_close(found, expected, factor=1e3)
    plain = diffusion.sample(call, worlds.X_T, worlds.DDIM).x_0
    assert np.max(np.abs(found - plain)) > 1e-3


def test_any_amount_of_the_recorded_error_is_injected_at_its_step():
    """Of one site, the result: x_{i+1} = F_i(x_i) + c_i a_i (eps_hat - eps)(x_hat_i), by hand."""
    amounts = np.array([0.3, -1.0, 2.5, 0.0, 0.7, 1.2])
    q = precision.Quantized(FIRST.denoiser, {"output": FIRST.site_inputs["output"]})
    found = jax.jit(
        lambda a: ledger.inject(q, worlds.X_T, worlds.DDIM, {"output": a})
    )(jnp.asarray(amounts))  # fmt: skip
    full, hat = (jax.jit(lambda x, t, f=f: f(x, t, None)[0]) for f in coupled.calls(q))
    x = x_hat = worlds.X_T
    for i, t in enumerate(worlds.DDIM.t):
        c = jax.tree.map(lambda leaf, i=i: leaf[i], worlds.DDIM.coeffs)
        recorded = hat(x_hat, t) - full(x_hat, t)
        x = c.advance(x, full(x, t) + amounts[i] * recorded)
        x_hat = c.advance(x_hat, hat(x_hat, t))
    assert_close(found, x, factor=1e3)
