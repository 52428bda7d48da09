"""Recipes drawn at random, and what the tables say of their predictions."""

import numpy as np
import pytest
import scipy.stats

from experiments.harness import command
from experiments.random_recipes import draws, plots
from experiments.random_recipes import experiment as random_recipes
from qdiffjax.precision import Recipe, SiteBits
from qdiffjax.sites import list_sites
from tests import worlds

NET = worlds.handwritten()
SITES = [s for s in list_sites(NET.fn, *NET.args) if s.product is not None]


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_a_drawn_recipe_has_its_average_width_and_both_families_of_formats(bits):
    rng = np.random.default_rng(bits)
    recipes = [draws.draw(rng, SITES, bits, 10) for _ in range(40)]
    sizes = {s.name: s.parameters for s in SITES}
    finest = max(sizes.values()) / sum(sizes.values())  # what one site moves the average by
    for recipe in recipes:
        weights = {name: b.weight.bits for name, b in recipe.bits.items() if b.weight}
        mean = np.average([*weights.values()], weights=[sizes[name] for name in weights])
        assert abs(mean - bits) <= max(draws.NEAR, finest)
    entries = [e for r in recipes for t in r.tables for b in t.values() for e in b if e]
    kinds = {type(e.format).__name__ for e in entries}
    assert kinds == {"IntFormat", "FloatFormat"}
    assert all(2 <= e.bits <= 8 for e in entries)
    assert {len(r.phases) for r in recipes} == {0, 1}


def test_average_bits_count_parameters_products_and_steps():
    first, second = SITES[0].name, SITES[1].name
    recipe = Recipe({first: SiteBits(4, 8), second: SiteBits(8, 4)})
    weights, activations = draws.mean_bits(recipe, SITES[:2], 5)
    p, m = ([getattr(s, what) for s in SITES[:2]] for what in ("parameters", "macs"))
    assert weights == pytest.approx(np.average([4, 8], weights=p))
    assert activations == pytest.approx(np.average([8, 4], weights=m))


def rows(num=40, seed=0):
    rng = np.random.default_rng(seed)
    true = np.exp(rng.normal(size=num))
    told = []
    for i, m in enumerate(true):
        p = m * np.exp(0.1 * rng.normal())
        told.append({"recipe": i, "stratum": 4 + 2 * (i % 2), "measured": m, "predicted": p,
                     "weight_error": float(rng.random()), "weight_bits": float(i % 3),
                     "of_seeds": [[m, p]]})  # fmt: skip
    return told


def test_rank_correlations_are_those_of_scipy():
    told = rows()
    for name in plots.PREDICTORS:
        pair = [[row[key] for row in told] for key in (name, "measured")]
        expected = abs(scipy.stats.spearmanr(*pair).statistic)
        assert plots.spearman(told, name) == pytest.approx(expected)


def test_intervals_of_exchangeable_recipes_hold_as_often_as_they_say():
    held = total = 0
    for seed in range(60):
        h, n, _ = plots.coverage(rows(seed=seed))
        held, total = held + h, total + n
    assert abs(held / total - 10 / 11) < 0.04  # the largest of ten that are fitted


@pytest.mark.parametrize(
    "change", [{"mean_bits": (2,)}, {"mean_bits": (9,)}, {"num_recipes": 0}, {"num_steps": 1},
               {"num_alone": 0}, {"num_seeds": 0}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        command.check(random_recipes.Config(**change))
