"""Two runs on one noise: what each step commits closes the recursion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis.errors import propagation, runs
from tests import worlds
from tests.analysis import coupled
from tests.tolerances import assert_close

couple = functools.partial(jax.jit, static_argnums=(0, 1))(runs.couple)


@pytest.fixture(scope="module", params=["ddim", "ddpm"])
def sampler(request):
    return coupled.SAMPLERS[request.param]


@pytest.fixture(scope="module")
def pair(sampler):
    return couple(worlds.EXACT, worlds.rounded, worlds.X_T, sampler[0], key=worlds.KEY)


exact = jax.jit(jax.vmap(lambda x, t: worlds.EXACT(x, t, None)[0]))


def test_a_full_step_plus_its_local_error_is_the_quantized_step(sampler, pair):
    steps, key = sampler
    zs = coupled.noise_path(steps, key, worlds.X_T)
    for xs, e in ((pair.xs, 0 * pair.local_errors), (pair.xs_hat, pair.local_errors)):
        c = jax.tree.map(lambda leaf: leaf[:, None, None], steps.coeffs)
        following = c.x * xs[:-1] + c.eps * exact(xs[:-1], steps.t) + c.noise * zs + e
        assert_close(following, xs[1:], factor=64)


def test_the_runs_start_together_and_end_apart_by_the_accumulated_error(pair):
    np.testing.assert_array_equal(pair.errors[0], 0)
    np.testing.assert_array_equal(pair.errors, pair.xs_hat - pair.xs)
    assert np.all(runs.norms(pair.errors)[1:] > 0)


def test_norms_are_euclidean_and_per_sample():
    values = jnp.zeros((2, 3, 2, 2)).at[1, 2].set(jnp.array([[3.0, 0.0], [0.0, 4.0]]))
    np.testing.assert_array_equal(runs.norms(values), [[0, 0, 0], [0, 0, 5]])


def test_identical_denoisers_commit_no_error():
    pair = couple(worlds.fast, worlds.fast, worlds.X_T, worlds.DDPM, key=worlds.KEY)
    np.testing.assert_array_equal(pair.errors, 0)
    np.testing.assert_array_equal(pair.local_errors, 0)


def test_a_sample_does_not_know_its_batch():
    def coarse(x, t, inputs, state):
        return worlds.grid(worlds.fast(worlds.grid(x), t, inputs)[0]), None, state

    together = couple(worlds.fast, coarse, worlds.X_T, worlds.DDIM)
    for b in range(worlds.BATCH):
        alone = couple(worlds.fast, coarse, worlds.X_T[b : b + 1], worlds.DDIM)
        jax.tree.map(lambda a, t, b=b: assert_close(a[:, 0], t[:, b]), alone, together)


def test_inputs_by_call_reach_the_quantized_denoiser_of_their_step():
    offsets = jnp.arange(1.0, 1 + worlds.NUM_STEPS)
    shifted = lambda x, t, d, state=(): (worlds.fast(x, t, None)[0] + d, None, state)  # noqa: E731
    pair = runs.couple(worlds.fast, shifted, worlds.X_T, worlds.DDIM, per_call=offsets)
    expected = (worlds.DDIM.coeffs.eps * offsets)[:, None, None] * jnp.ones((1, worlds.BATCH, 2))
    assert_close(pair.local_errors, expected, factor=256)


def strict(x, t, inputs, state=()):
    """A denoiser that takes its times in the dtype of the state, as `sample` gives them."""
    assert x.dtype == t.dtype == jnp.float32
    return jnp.tanh(x + t / 40), None, state


def test_float32_states_meet_float32_times_as_in_the_sampler():
    x_T = worlds.X_T.astype(jnp.float32)
    finer = lambda x, t, i, state=(): (worlds.grid(strict(x, t, i)[0]), None, state)  # noqa: E731
    pair = runs.couple(strict, finer, x_T, worlds.DDIM)
    e = pair.local_errors
    results = (
        propagation.propagate(strict, pair.xs, worlds.DDIM, e),
        *propagation.propagate_with_remainders(strict, pair.xs, pair.xs_hat, worlds.DDIM, e),
        propagation.fan(strict, pair.xs_hat, worlds.DDIM),
        coupled.homotopy(strict, x_T, worlds.DDIM, e, num_nodes=1),
    )
    assert {a.dtype for a in (*jax.tree.leaves(pair), *results)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "fn",
    [
        lambda: propagation.fan(worlds.fast, jnp.zeros((7, 1, 2)), worlds.DDPM),
        lambda: propagation.run_suffix(worlds.fast, worlds.X_T, 0, worlds.DDPM),
        lambda: coupled.homotopy(
            worlds.fast, worlds.X_T, worlds.DDPM, jnp.zeros((6, 4, 2)), num_nodes=1
        ),
        lambda: runs.couple(worlds.fast, worlds.fast, worlds.X_T, worlds.DDPM),
    ],
    ids=["fan", "run_suffix", "homotopy", "couple"],
)
def test_a_sampler_that_adds_noise_asks_for_its_key(fn):
    with pytest.raises(ValueError, match="None for steps with noise"):
        fn()


def test_the_sampler_that_the_identities_replay_is_the_library_s(sampler):
    steps, key = sampler
    zs = coupled.noise_path(steps, key, worlds.X_T)
    expected = diffusion.sample(worlds.fast, worlds.X_T, steps, key=key).x_0
    assert_close(coupled.run_from(worlds.fast, worlds.X_T, 0, steps, zs), expected, factor=64)
    assert_close(
        propagation.run_suffix(worlds.fast, worlds.X_T, 0, steps, key=key), expected, factor=64
    )
