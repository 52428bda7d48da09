"""A recipe chosen for one chip, priced on others: predicted seconds beside the error of samples."""

import math

import numpy as np

from experiments.allocate.rows import CHIPS, SHAPES, named
from experiments.harness import networks
from qdiffjax import hardware, precision, sites, strategies
from qdiffjax.strategies import budgets, recommendation
from qdiffjax.strategies.choices import entry_of

WORDS = ("W4", "W8", "W4A8", "W8A8", "W:e4m3 A:e4m3")
FULL = 16


def crossing(config, here, steps, keys):
    """Return (arrays, rows): a recipe for each chip within a share of what it could gain there.

    The budget of a chip is the time of its fastest recipe and `chip_share` of what full precision
    takes more.
    """
    offered = strategies.offer(here.calibration, steps, WORDS, sites=config.sites)
    noise = strategies.trial(offered, keys[0], config.batch_size)
    algebra = strategies.error_algebra(noise)
    fresh = strategies.trial(offered, keys[2], config.num_samples, config.batch_size)
    all_sites = here.denoiser.sites(config.chip_batch)
    by_name = {site.name: site for site in all_sites}
    plain = precision.SiteBits()
    recipes, rows = {}, []
    for name in config.chips:
        chip = next(chip for chip in hardware.CHIPS if chip.name == name)
        priced = budgets.seconds(1.0, chip, batch=config.chip_batch, full=FULL).priced(offered)
        real = math.fsum(hardware.site_seconds(by_name[member], plain, chip, full=FULL)
                         for site in offered.sites for member in offered.members[site])  # fmt: skip
        total = priced.least + config.chip_share * max(real - priced.least, 0.0)
        own = strategies.ErrorAlgebra(priced, algebra.vectors, algebra.variances, None,
                                      algebra.num_runs)  # fmt: skip
        pick = recommendation.least_error(own, total).choice
        recipes[name] = offered.recipe(pick)
        errors = fresh.errors(pick)
        rmse, *_ = recommendation.compared(errors, errors, keys[3])
        rows.append({"kind": CHIPS, "chip": name, "predicted": own.predicted(pick),
                     **named("rmse", rmse), "words": _counted(offered, pick)})  # fmt: skip
    times = hardware.times_on_chips(all_sites, recipes, full=FULL)
    for row, seconds in zip(rows, times.seconds[1:], strict=True):
        row["ratios"] = dict(zip(times.chips, seconds / times.seconds[0], strict=True))
        row["fallbacks"] = {chip: dict(found) for (name, chip), found in times.fallbacks.items()
                            if name == row["chip"]}  # fmt: skip
    return {"seconds": times.seconds}, rows


def _counted(choices: strategies.Choices, pick) -> dict[str, int]:
    """Return how many sites have each choice."""
    return {name: int(np.sum(pick == k)) for k, name in enumerate(choices.names)}


def by_shapes(name: str, batch: int):
    """Return (arrays, rows): the same formats at all sites with a weight, on every chip."""
    network = networks.load(name)
    all_sites = sites.list_sites(network.eps_fn, *network.arguments(batch))
    own = [s.name for s in all_sites if s.kind in ("dot", "conv") and s.weight is not None]
    recipes = {words: precision.Recipe(dict.fromkeys(own, entry_of(words))) for words in WORDS}
    times = hardware.times_on_chips(all_sites, recipes, full=FULL)
    rows = [
        {"kind": SHAPES, "network": name, "batch": batch, "words": words,
         "ratios": dict(zip(times.chips, seconds / times.seconds[0], strict=True)),
         "fallbacks": [chip for (recipe, chip) in times.fallbacks if recipe == words]}
        for words, seconds in zip(times.recipes[1:], times.seconds[1:], strict=True)
    ]  # fmt: skip
    return {"seconds": times.seconds}, rows
