"""The attribution ledger is complete, exact where algebra says so, and of the order promised."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ablation, ledger, propagation, runs
from qdiffjax.denoiser import Denoiser
from qdiffjax.quant import ActivationGrid
from tests import worlds
from tests.analysis import coupled
from tests.tolerances import assert_close, slope
from tests.worlds import normal

G = jnp.array([0.6, -1.1])


def linear(x, x_0, x_hat_0):
    return x @ G


FUNCTIONALS = {
    "linear": linear,
    "share": ledger.squared_error_share,
    "quadratic": lambda x, x_0, x_hat_0: jnp.mean((x - x_0) ** 2),
}


def attribute(q, x_T, steps, per_call=None, *, chosen="linear", num_nodes=4):
    """Ledger of a functional; the choice is data, so that all three share one program."""
    picks = {name: jnp.float64(name == chosen) for name in FUNCTIONALS}
    return _attribute(q, x_T, steps, per_call, picks, num_nodes=num_nodes)


@functools.partial(jax.jit, static_argnames="num_nodes")
def _attribute(q, x_T, steps, per_call, picks, *, num_nodes):
    def functional(*args):
        return sum(picks[name] * phi(*args) for name, phi in FUNCTIONALS.items())

    return ledger.attribution(
        q, x_T, steps, functional, num_nodes=num_nodes, key=worlds.KEY, per_call=per_call
    )


@jax.jit
def two_runs(q, x_T, steps, per_call=None):
    full, hat = coupled.calls(q)
    x_0 = diffusion.sample(full, x_T, steps, key=worlds.KEY).x_0
    return x_0, diffusion.sample(hat, x_T, steps, key=worlds.KEY, per_call=per_call).x_0


@functools.cache
def made(sampler="ddim", chosen="linear"):
    return attribute(
        coupled.quantized(), worlds.X_T, coupled.ALL_SAMPLERS[sampler][0], chosen=chosen
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_known_final_samples_give_the_same_ledger(sampler):
    q, steps = coupled.quantized(), coupled.ALL_SAMPLERS[sampler][0]
    run = jax.jit(lambda x_0: ledger.attribution(q, worlds.X_T, steps, num_nodes=2, x_0=x_0,
                                                 key=worlds.KEY))  # fmt: skip
    plain = run(None)
    x_0, _ = two_runs(q, worlds.X_T, steps)
    jax.tree.map(lambda a, b: assert_close(a, b, factor=100), run(x_0), plain)


def test_errors_that_are_kept_are_those_recorded_again():
    q, run = coupled.quantized(), functools.partial(ledger.attribution, num_nodes=2, key=worlds.KEY)
    kept, again = (
        jax.jit(functools.partial(run, keep_errors=keep))(q, worlds.X_T, worlds.DDPM)
        for keep in (True, False)
    )
    jax.tree.map(lambda a, b: assert_close(a, b, factor=100), kept, again)


# ------------------------------------------------------------------ completeness


@pytest.mark.slow
@pytest.mark.parametrize("functional", FUNCTIONALS)
@pytest.mark.parametrize("sampler", coupled.ALL_SAMPLERS)
def test_the_entries_sum_to_the_change_of_the_functional(sampler, functional):
    found = made(sampler, functional)
    x_0, x_hat_0 = two_runs(coupled.quantized(), worlds.X_T, coupled.ALL_SAMPLERS[sampler][0])
    phi = jax.vmap(FUNCTIONALS[functional])
    change = phi(x_hat_0, x_0, x_hat_0) - phi(x_0, x_0, x_hat_0)
    total = sum(np.sum(c, axis=1) for c in found.contributions.values())
    assert np.min(np.abs(change)) > 1e-6
    np.testing.assert_allclose(total, change, rtol=1e-8)
    np.testing.assert_allclose(ledger.total(found), total, rtol=1e-12)
    np.testing.assert_allclose(ledger.defect(found), 0, atol=1e-8)
    assert_close(found.x_0, x_0, factor=256)
    assert_close(found.x_hat_0, x_hat_0, factor=256)


def test_the_share_functional_changes_by_the_mean_squared_error():
    found = made(chosen="share")
    error = np.mean((found.x_hat_0 - found.x_0) ** 2, axis=1)
    np.testing.assert_allclose(found.change, error, rtol=1e-9)


def test_every_site_has_an_entry_of_each_sample_and_step_with_or_without_batch_axis_or_loop():
    contributions = made().contributions
    assert set(contributions) == set(worlds.NAMES) == {s.name for s in worlds.SITES}
    for entries in contributions.values():
        assert entries.shape == (worlds.BATCH, worlds.NUM_STEPS)
        assert np.all(np.max(np.abs(entries), axis=0) > 0)


def by_step(bits):
    """Activation grids of every site whose width varies by step."""
    grids = [coupled.symmetric(4.0, b) for b in bits]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grids)
    return {
        s.name: precision.SiteQuant(None, (stacked,) * len(s.activations)) for s in worlds.SITES
    }  # fmt: skip


def test_formats_that_vary_by_step_and_sites_left_alone_are_attributed_as_they_run():
    touched = ("input", "time", "in", "layers[0]", "layers[1]", "dot_0")
    q = coupled.quantized(8, None)
    q = precision.Quantized(q.denoiser, {name: q.site_inputs[name] for name in touched})
    per_call = {name: how for name, how in by_step((9, 8, 7, 9, 8, 7)).items() if name in touched}
    found = attribute(q, worlds.X_T, worlds.DDPM, per_call)
    x_0, x_hat_0 = two_runs(q, worlds.X_T, worlds.DDPM, per_call)
    assert set(found.contributions) == set(touched)
    assert_close(found.x_hat_0, x_hat_0, factor=256)
    np.testing.assert_allclose(ledger.total(found), (x_hat_0 - x_0) @ G, rtol=1e-8)


def test_stochastic_rounding_is_attributed_with_its_own_bits():
    keys = jax.random.split(jax.random.key(3), worlds.NUM_STEPS)
    per_call = jax.tree.map(
        lambda how: dataclasses.replace(how, key=keys), by_step((8,) * worlds.NUM_STEPS),
        is_leaf=lambda node: isinstance(node, ActivationGrid),
    )  # fmt: skip
    q, x_T = coupled.quantized(8, None), worlds.X_T[:1]
    found = attribute(q, x_T, worlds.DDIM, per_call)
    x_0, x_hat_0 = two_runs(q, x_T, worlds.DDIM, per_call)
    assert_close(found.x_hat_0, x_hat_0, factor=256)
    np.testing.assert_allclose(ledger.total(found), (x_hat_0 - x_0) @ G, rtol=1e-8)


# ------------------------------------------------------------------ order, symmetry, consistency


@functools.cache
def sized(num_nodes):
    """Ledgers of weight errors of three sizes."""
    sizes = np.array([0.05, 0.025, 0.0125])
    make = functools.partial(attribute, x_T=worlds.X_T, steps=worlds.DDIM)
    return sizes, [make(coupled.nudged(s), num_nodes=num_nodes) for s in sizes]


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_the_defect_of_k_nodes_is_of_order_2k(num_nodes):
    sizes, ledgers = sized(num_nodes)
    defects = [
        np.linalg.norm(ledger.total(f) - f.change) / np.linalg.norm(f.change) for f in ledgers
    ]
    assert slope(sizes, defects) == pytest.approx(2 * num_nodes, abs=0.25)


def test_the_sites_of_a_step_sum_to_its_term_of_the_fan_to_first_order():
    sizes, ledgers = sized(2)

    @jax.jit
    def terms(q):
        full, hat = coupled.calls(q)
        pair = runs.couple(full, hat, worlds.X_T, worlds.DDIM)
        return (propagation.fan(full, pair.xs_hat, worlds.DDIM) @ G).T

    differences = []
    for size, found in zip(sizes, ledgers, strict=True):
        steps = sum(found.contributions.values())
        expected = terms(coupled.nudged(size))
        differences.append(np.linalg.norm(steps - expected) / np.linalg.norm(expected))
    assert slope(sizes, differences) == pytest.approx(1, abs=0.2)
    assert differences[-1] < 0.1


def test_two_sites_that_play_the_same_part_share_equally():
    twins = {**worlds.PARAMS, "key": worlds.PARAMS["query"]}
    found = attribute(coupled.quantized(params=twins), worlds.X_T, worlds.DDIM).contributions
    assert np.min(np.abs(found["query"])) > 0
    np.testing.assert_allclose(found["key"], found["query"], rtol=1e-9, atol=1e-15)


def test_an_entry_does_not_know_the_other_samples():
    others = worlds.X_T.at[1:].set(normal(30, worlds.BATCH - 1, 2))
    found = attribute(coupled.quantized(), others, worlds.DDIM)
    for name, entries in made().contributions.items():
        assert_close(found.contributions[name][0], entries[0], factor=256)


# ------------------------------------------------------------------ worked cases, one step

X, C_X, C_EPS = normal(40, 3, 2), 0.9, -0.7
ONE_STEP = diffusion.Steps(
    jnp.ones(1), jnp.zeros(1),
    diffusion.StepCoeffs(jnp.full(1, C_X), jnp.full(1, C_EPS), jnp.zeros(1)),
)  # fmt: skip
A, B = normal(41, 2, 2), normal(42, 2, 2)
A_HAT, B_HAT = worlds.grid(A, 0.5), worlds.grid(B, 0.5)


def test_one_matrix_in_one_step_is_attributed_its_whole_effect():
    q = precision.Quantized(
        Denoiser(lambda params, x, t: x @ params["a"], {"a": A}),
        {"a": precision.SiteQuant(A_HAT)},
    )
    expected = C_EPS * (np.asarray(X) @ np.asarray(A_HAT - A)) @ np.asarray(G)
    found = ledger.attribution(q, X, ONE_STEP, linear, num_nodes=1)
    assert_close(found.contributions["a"][:, 0], expected)
    assert_close(found.change, expected)
    forecast = ablation.forecast(q, X, ONE_STEP, lambda x: x @ G)
    assert_close(forecast.contributions["a"][:, 0], expected)


def test_two_factors_share_their_joint_effect_in_equal_parts():
    """eps = (x A)(x B): the change is r_A b + a r_B + r_A r_B, and the last is split in two."""
    fn = lambda params, x, t: (x @ params["a"]) * (x @ params["b"])  # noqa: E731
    inputs = {"a": precision.SiteQuant(A_HAT), "b": precision.SiteQuant(B_HAT)}
    q = precision.Quantized(Denoiser(fn, {"a": A, "b": B}), inputs)
    found = ledger.attribution(q, X, ONE_STEP, linear, num_nodes=1)
    x, g = np.asarray(X), C_EPS * np.asarray(G)
    a, b, r_a, r_b = (x @ np.asarray(m) for m in (A, B, A_HAT - A, B_HAT - B))
    assert_close(found.contributions["a"][:, 0], (r_a * (b + r_b / 2)) @ g)
    assert_close(found.contributions["b"][:, 0], (r_b * (a + r_a / 2)) @ g)
    forecast = ablation.forecast(q, X, ONE_STEP, lambda x: x @ G)
    assert_close(forecast.contributions["a"][:, 0], (r_a * b) @ g)
    assert_close(forecast.contributions["b"][:, 0], (r_b * a) @ g)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_network_may_compute_in_fewer_bits_than_the_sampler(dtype):
    fn = lambda params, x, t: (x.astype(dtype) @ params["a"]).astype(x.dtype)  # noqa: E731
    q = precision.Quantized(
        Denoiser(fn, {"a": A.astype(dtype)}), {"a": precision.SiteQuant(A_HAT.astype(dtype))}
    )
    found = ledger.attribution(q, X, ONE_STEP, linear, num_nodes=1)
    forecast = ablation.forecast(q, X, ONE_STEP, lambda x: x @ G)
    for entries in (found.contributions["a"], forecast.contributions["a"]):
        assert entries.dtype == jnp.float64
        tolerance = 8 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(entries[:, 0], found.change, rtol=tolerance, atol=tolerance)


def test_a_ledger_is_summed_and_laid_out_as_written():
    entries = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 5.0]])}
    found = ledger.Ledger(entries, jnp.array([10.0]), None, None)
    assert_close(ledger.total(found), np.array([11.0]))
    assert_close(ledger.defect(found), np.array([0.1]))
    names, table = ledger.as_table(found)
    assert names == ("a", "b")
    assert_close(table, np.array([[[1.0, 3.0], [2.0, 5.0]]]))


# ------------------------------------------------------------------ injection


@pytest.mark.parametrize("sampler", coupled.ALL_SAMPLERS)
def test_injecting_all_errors_gives_the_quantized_run_and_none_the_full_run(sampler):
    q, steps = coupled.quantized(4, 4), coupled.ALL_SAMPLERS[sampler][0]
    inject = jax.jit(lambda amounts, steps: ledger.inject(
        q, worlds.X_T, steps, dict.fromkeys(worlds.NAMES, amounts), key=worlds.KEY
    ))  # fmt: skip
    x_0, x_hat_0 = two_runs(q, worlds.X_T, steps)
    assert_close(inject(jnp.zeros(worlds.NUM_STEPS), steps), x_0, factor=256)
    assert_close(inject(jnp.ones(worlds.NUM_STEPS), steps), x_hat_0, factor=256)
    assert np.max(np.abs(x_hat_0 - x_0)) > 0.01


def test_without_the_key_of_a_noisy_sampler_no_ledger_is_made():
    q = precision.Quantized(
        Denoiser(lambda p, x, t: x @ p["a"], {"a": A}), {"a": precision.SiteQuant(A_HAT)}
    )
    for make in (
        lambda: ledger.attribution(q, X, worlds.DDPM),
        lambda: ablation.forecast(q, X, worlds.DDPM, lambda x: x @ G),
        lambda: ledger.inject(q, X, worlds.DDPM, {"a": jnp.ones(worlds.NUM_STEPS)}),
    ):
        with pytest.raises(ValueError, match="key: got None for steps with noise"):
            make()
