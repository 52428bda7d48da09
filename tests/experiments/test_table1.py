"""The forms of the survey's Table 1, and what they cost."""

import jax
import numpy as np
import pytest

from experiments.harness import command
from experiments.table1 import costs, plots, summary, techniques
from experiments.table1 import experiment as table1
from qdiffjax import hardware, networks, precision, strategies
from qdiffjax.diffusion import ddim

SITES = ("*", "!input", "!output", "!products", "!last")


@pytest.fixture(scope="module")
def world():
    denoiser = networks.load("fashion_dit")
    steps = ddim(denoiser.schedule, 3)
    calibration = precision.calibrate(denoiser, steps, jax.random.key(0), num_samples=2)
    return techniques.World(calibration, steps, SITES, jax.random.key(1), 2, 0.03, 2)


def draft(world, technique, form, weights=4, activations=8, cures=()):
    made = techniques.forms(world, weights, activations)[technique, form]()
    return strategies.improve(
        world.calibration, made.recipe, cures, world.steps, world.key, num_samples=2, num_calls=3,
        sites=SITES, **made.options,
    )  # fmt: skip


def test_every_technique_of_the_survey_has_both_forms(world):
    known = techniques.forms(world, 4, 8)
    assert [*known] == [(t, f) for t in techniques.SURVEY for f in ("plain", "best")]


@pytest.mark.parametrize(("words", "pair"), [("W4A8", (4, 8)), ("W2A8", (2, 8))])
def test_widths_are_read(words, pair):
    assert summary.widths_of(words) == pair


@pytest.mark.parametrize("words", ["W4", "W1A8", "4", "W16A16"])
def test_what_is_no_pair_of_widths_is_refused(words):
    with pytest.raises(ValueError, match="such as W4A8"):
        command.check(table1.Config(recipes=(words,)))


@pytest.mark.parametrize("change", [{"techniques": ("PTQ",)}, {"num_groups": 200}])
def test_a_wrong_config_is_refused(change):
    with pytest.raises(ValueError, match="expected"):
        command.check(table1.Config(**change))


def test_first_and_last_layers_are_paid_for_by_small_ones(world):
    row = costs.row(draft(world, "mixed precision", "plain"), SITES, 3)
    assert 3.8 < row["bits"] <= 4


def test_a_rule_by_step_stores_each_width_and_computes_their_mean(world):
    plain = costs.row(draft(world, "dynamic", "plain"), SITES, 3)
    row = costs.row(draft(world, "timestep-adaptive", "plain"), SITES, 3)
    np.testing.assert_allclose([plain["bits"], row["bits"]], [4, (8 + 4 + 8) / 3])
    np.testing.assert_allclose(row["stored"], 12 + 2 * (plain["stored"] - 4), rtol=1e-6)


def test_what_is_cached_is_stored_but_not_computed(world):
    plain = costs.row(draft(world, "dynamic", "plain"), SITES, 3)
    cached = draft(world, "dynamic", "plain", cures=(strategies.cached_time_path(),))
    assert cached.plain
    row = costs.row(cached, SITES, 3)
    assert row["bits"] == 4
    assert row["megabytes"] == plain["megabytes"]
    assert row["gigabops"] < plain["gigabops"]


def test_codebooks_take_a_basis(world):
    made = draft(world, "non-uniform PTQ", "plain", cures=(strategies.rotation(world.key),))
    assert made.around
    weight = made.quantized().site_inputs["block_0/mlp/up/kernel"].weight
    assert max(len(np.unique(np.asarray(column))) for column in weight.T) == 16


def test_costs_are_those_of_the_hardware_models(world):
    made = draft(world, "dynamic", "plain")
    sites = world.calibration.denoiser.sites()
    counts = hardware.count(sites)
    w = hardware.widths(counts, costs.recipe_of(made, SITES))
    row = costs.row(made, SITES, 3)
    assert row["gigabops"] == pytest.approx(float(hardware.bops(counts, w).sum()) / 1e9)
    other = hardware.other_elements(world.calibration.denoiser.params, counts)
    whole = float(hardware.model_bytes(counts, w, other))
    assert row["megabytes"] == pytest.approx(whole / 1e6, rel=1e-3)


def test_seeds_are_told_together_and_failures_apart():
    key = ("W4A8", "dynamic", "plain")
    values = {(seed, *key): np.full(100, 0.1 * seed) for seed in (1, 2)}
    cost = dict.fromkeys(summary.MEANS, 1.0)
    runs = [{"kind": "run", "seed": seed, "recipe": "W4A8", "technique": "dynamic", "form": "plain",
             "what": "w", "features": "f", "frechet": [seed, 0, 1], "floor": [0, 0, 0],
             "seconds_of_chips": [1, 2], **cost} for seed in (1, 2)]  # fmt: skip
    failed = {**runs[0], "form": "best", "failure": "no"}
    (row,) = summary.rows(values, [*runs, failed], 0)
    assert row["rmse"] == pytest.approx(np.sqrt((0.01 + 0.04) / 2))
    assert row["frechet"] == [1.5, 0, 1]
    assert row["guaranteed"] == pytest.approx(0.1)
    assert plots.failures([*runs, failed, row]) == [failed]
    assert len(plots.table([*runs, failed, row])) == 4
