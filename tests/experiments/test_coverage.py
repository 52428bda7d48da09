"""The toy is the optimal denoiser; pools are known laws; what is counted is what failed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.coverage import experiment as coverage
from experiments.coverage import plots, pools
from experiments.harness import command
from qdiffjax.diffusion import gaussian

SMALL = coverage.Config(num_pool=4000, num_repetitions=100, num_scores=(20,), num_choice=40)


def tails():
    return pools.heavy_tails(SMALL.num_pool, 0)["lognormal"]


@pytest.mark.parametrize("t", [20, 300, 900])
def test_the_toy_is_the_optimal_denoiser_of_its_mixture(t):
    """eps = -sigma times the score of the noised mixture, by the general formula in float64."""
    law = pools.mixture(0)
    denoiser = pools.mixture_denoiser(law)
    x = np.random.default_rng(1).normal(size=(5, pools.DIM))
    level = denoiser.schedule.exact(t)
    law = gaussian.cast(law, jnp.float64)
    exact = -level.sigma * gaussian.score(gaussian.marginal(law, level), x)
    found = denoiser.eps_fn(denoiser.params, jnp.asarray(x, jnp.float32), jnp.float32(t))
    np.testing.assert_allclose(found, exact, atol=2e-4)


def test_the_fitted_network_is_near_it():
    law = pools.mixture(0)
    exact, fitted = pools.mixture_denoiser(law), pools.fitted_denoiser(law, 0)
    x = jax.random.normal(jax.random.key(0), (200, pools.DIM), jnp.float32)
    eps, near = (d.eps_fn(d.params, x, jnp.float32(800)) for d in (exact, fitted))
    assert jnp.mean((near - eps) ** 2) < 0.2 * jnp.mean(eps**2)


def test_the_region_of_failures_is_that_of_the_binomial_law():
    """200 at .05: P(at most 2) = .0023, P(at most 3) = .0090; P(at most 18) = .9938, 19: .9969."""
    failures = np.arange(200) < 7
    row = coverage.counted(failures, 0.05, 0.05)
    assert (row["repetitions"], row["failures"], row["within"]) == (200, 7, True)
    assert (row["least"], row["most"]) == (3, 19)
    assert not coverage.counted(np.ones(200, bool), 0.05, 0.05)["within"]
    assert coverage.counted(np.zeros(200, bool), 0.0, 0.05)["within"]


def test_the_third_recipe_is_the_first_that_breaks_its_promise():
    rows = coverage.choices_rows(SMALL, tails(), np.random.default_rng(0))
    assert {row["keep"] for row in rows} == {2}
    assert {(row["what"], row["how"]) for row in rows} == {
        ("share", "binomial"), ("share", "as measured"), ("mean", "betting"),
        ("mean", "Hoeffding-Bentkus"), ("mean", "as measured"),
    }  # fmt: skip
    naive = [row for row in rows if row["how"] == "as measured"]
    assert all(row["failures"] > 20 for row in naive)  # of 100, the third being on the boundary
    assert all(row["within"] for row in rows if row["how"] != "as measured")


def test_a_table_of_every_kind_is_printed_of_the_rows_of_a_pool():
    rng = np.random.default_rng(0)
    rows = coverage.bounds_rows(SMALL, tails(), 20, rng)
    tame = tails()._replace(bounded=tails().bounded / 50)  # nine times its mean is a bound too
    rows += [coverage.w2_rows(SMALL, tame, rng)]
    rows += coverage.choices_rows(SMALL, tails(), rng)
    rows = [{"pool": "lognormal"} | row for row in rows]
    assert [row["what"] for row in plots.of_kind(rows, "bound")] == [
        "next sample", "its quantile", "mean, betting", "mean, Bernstein",
    ]  # fmt: skip
    assert len(plots.table(rows)) == 3
    fig = plots.draw({"delta": 0.05}, {}, rows)
    assert len(fig.axes) == 2


@pytest.mark.parametrize(
    "change", [{"alpha": 0.0}, {"delta": 1.0}, {"share": 0.0}, {"bits": (1,)}, {"num_pool": 10},
               {"w2_factor": 1.0}, {"num_scores": (8,)}, {"num_repetitions": 1}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        command.check(coverage.Config(**change))
