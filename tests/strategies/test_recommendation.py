"""What is recommended is within the budget and better than uniform on other noise, or uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, strategies
from qdiffjax.strategies import recommendation
from tests.strategies import parallel
from tests.tolerances import assert_close

KEY = jax.random.key(5)


def recommend(budget, choices=(2, 3, 4, 5, 6), num_steps=1, **options):
    steps = {1: parallel.ONE_STEP, 4: parallel.STEPS}[num_steps]
    options = {"sites": ("*",), "num_noises": 8, "num_samples": 16, "num_probes": None} | options
    return qd.recommend(parallel.calibrated(num_steps), steps, budget, choices, key=KEY, **options)


def test_it_is_within_the_budget_and_better_on_fresh_noise_or_uniform():
    found = recommend("W4", ("W3", "W4", "W4 nearest", "W4 mse", "W5"), 4)
    assert found.choices.total(found.pick) <= found.budget
    assert found.choices.total(found.uniform) <= found.budget
    assert found.is_uniform == (float(found.ratio.high) >= 1)
    assert not found.is_uniform
    assert found.floor <= found.predicted
    assert_close(found.ratio.value, found.measured.value / found.beside.value, factor=64)
    # The same numbers from runs of the recipe itself on the noise of the check.
    fresh = strategies.trial(found.choices, jax.random.split(KEY, 5)[2], 16)
    q = qd.quantize(parallel.calibrated(4), found.recipe)
    full = qd.sample(parallel.denoiser(), parallel.STEPS, KEY, x_T=fresh.draw.x_T)
    apart = qd.sample(q, parallel.STEPS, KEY, x_T=fresh.draw.x_T) - full
    rmse = jnp.sqrt(jnp.mean(apart**2))
    assert_close(np.float32(found.measured.value), rmse, factor=64, scale=1.0)
    text = str(found)
    assert "What was found is recommended" in text
    assert "16 fresh noises" in text


def test_adjoint_passes_are_counted_as_three_sampling_runs():
    words = ("W3", "W4", "W4 nearest", "W4 mse", "W5")
    found = recommend("W4", words, 4, num_probes=8, num_rounds=1)
    assert found.num_runs == 2 * (1 + 3 * 8) + (1 + 2 + 3) / 2 + 3 * 16 / 8
    planned = recommendation.planned_runs(found.choices, found.budget, num_noises=8,
                                          num_samples=16, num_rounds=1, num_probes=8)  # fmt: skip
    assert found.num_runs == planned
    assert found.choices.total(found.found) <= found.budget


def test_a_recommendation_takes_25_runs_and_says_so_beforehand(capsys):
    """One adjoint algebra of six passes, two uniform recipes, 48 noises and 64 fresh ones."""
    found = recommend(4.3 + 32 / 6, progress=True)
    assert recommendation.planned_runs(found.choices, found.budget) == 25
    said = capsys.readouterr().err
    assert f"{found.num_runs:g} sampling runs of 8 noises" in said
    assert found.num_runs == 1 + 4 * 5 + (1 + 1 + 2) / 2 + 3 * 16 / 8


def test_activations_are_priced_by_their_variance_and_measured():
    """Within the same bits of weights, 8-bit activations are taken and 2-bit ones are not."""
    found = recommend("W4A8", ("W4A2", "W4A8"), 4)
    assert [found.choices.names[k] for k in found.found] == ["W4A8"] * 4
    assert found.is_uniform
    assert all(bits.activation.bits == 8 for bits in found.recipe.bits.values())


def test_noise_of_the_three_parts_differs():
    choices = recommend("W4").choices
    draws = [strategies.trial(choices, key, 4).draw.x_T for key in jax.random.split(KEY, 5)]
    for i in range(3):
        for j in range(i):
            assert float(jnp.min(jnp.abs(draws[i] - draws[j]))) > 0


def test_uniform_is_recommended_where_all_choices_are_equal():
    """Weights on a grid of 3 bits: every width is exact, so that nothing can be better."""
    params = {name: jnp.asarray(np.random.default_rng(i).integers(-3, 4, (6, 6)), jnp.float32)
              .at[0].set(3.0) for i, name in enumerate(parallel.NAMES)}  # fmt: skip
    denoiser = qd.Denoiser(parallel.net_fn, params, parallel.SCHEDULE, (6,))
    calibration = precision.calibrate(denoiser, parallel.ONE_STEP, KEY, num_samples=2)
    found = qd.recommend(calibration, parallel.ONE_STEP, "W3 nearest",
                         ("W3 nearest", "W3 nearest absmax"), key=KEY, sites=("*",), num_noises=2,
                         num_samples=4)  # fmt: skip
    assert float(found.beside.value) == 0
    assert found.is_uniform
    assert "Uniform is recommended" in str(found)
    assert found.recipe.bits == found.choices.recipe(found.uniform).bits


def test_a_budget_between_widths_goes_to_the_smallest_sites_first():
    """Costs 1 and 2 for each element; sizes 4, 1, 2: three elements more fit."""

    class Made:
        sites, num_weights = ("p", "q", "r"), np.array([4.0, 1.0, 2.0])
        costs = num_weights[:, None] * np.array([1.0, 2.0, 3.0])

        def total(self, pick):
            return self.costs[range(3), pick].sum()

    plain, mixed = recommendation.uniform_picks(Made(), 10.0)
    assert plain.tolist() == [0, 0, 0]
    assert mixed.tolist() == [0, 1, 1]
    assert [p.tolist() for p in recommendation.uniform_picks(Made(), 14.0)] == [[1, 1, 1]]
    assert [p.tolist() for p in recommendation.uniform_picks(Made(), 99.0)] == [[2, 2, 2]]


def test_the_ratio_of_equal_errors_is_one_and_of_halves_a_half():
    errors = np.random.default_rng(0).gamma(2.0, size=32)
    _, _, same = recommendation.compared(errors, errors, KEY)
    assert_close(np.array(same), np.ones(3))
    low, high, half = recommendation.compared(errors / 2, errors, KEY, 0.9)
    assert_close(np.array(half), np.full(3, 0.5))
    assert float(low.low) < float(low.value) < float(low.high) < float(high.high)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"budget": 1.0}, "at least .*, the cheapest"), ({"budget": "W7"}, "one of"),
     ({"budget": -1.0}, "budget"), ({"confidence": 1.0}, "confidence"),
     ({"num_samples": 1}, "num_samples"), ({"sites": ("elsewhere",)}, "elsewhere"),
     ({"choices": {"a": (4,)}}, "no format"), ({"num_rounds": -1}, "num_rounds")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_recommended_is_refused_in_one_line(change, match):
    with pytest.raises(ValueError, match=match) as error:
        recommend(**({"budget": "W4"} | change))
    assert "\n" not in str(error.value)


def test_probes_of_a_sampler_that_adds_noise_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(recommendation, "offer", None)  # what it would begin with
    steps = qd.ddim(parallel.denoiser().schedule, 4, eta=0.5)
    with pytest.raises(ValueError, match=r"adds noise, expected .*num_probes=None"):
        qd.recommend(parallel.calibrated(4), steps, "W4", ("W4",), key=KEY)
