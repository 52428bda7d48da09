"""Recipes drawn at random: widths and formats by site and step, around a given average width."""

from collections.abc import Sequence

import numpy as np

from qdiffjax.precision import OperandFormat, Phase, Recipe, SiteBits, width_of
from qdiffjax.quant import FloatFormat, IntFormat
from qdiffjax.sites import Site

LEAST, MOST, SPREAD = 2, 8, 2
SPLITS = {3: ((2, 0),), 4: ((2, 1), (3, 0)), 5: ((2, 2), (3, 1)), 6: ((2, 3), (3, 2)),
          7: ((3, 3), (4, 2)), 8: ((4, 3), (5, 2), (3, 4))}  # fmt: skip
FLOATS = 0.4  # share of floats among formats that have one
PHASES = 0.6  # share of recipes that change at some step
REDRAWN = 0.5  # share of sites that such a recipe redraws
NEAR = 0.05  # bits by which an average may miss its target


def draw(
    rng: np.random.Generator,
    sites: Sequence[Site],
    bits: float,
    num_steps: int,
    *,
    scales: str = "dynamic",
) -> Recipe:
    """Return a recipe whose weights have `bits` bits each on average, by their number.

    Each site has a width of its own, within 2 bits of the average, of integers or floats of some
    split, for weights by output channel and for activations, with up to 3 bits more. Some
    recipes change half of their sites from some step on, to another draw of that average.
    """
    first = _table(rng, sites, bits, scales)
    if num_steps < 2 or rng.random() > PHASES:
        return Recipe(first)
    start = int(rng.integers(1, num_steps))
    second = _table(rng, sites, bits, scales)
    chosen = {name: b for name, b in second.items() if rng.random() < REDRAWN}
    return Recipe(first, (Phase(tuple(range(start, num_steps)), chosen),) if chosen else ())


def _table(rng, sites, bits: float, scales: str) -> dict[str, SiteBits]:
    weighted = [s for s in sites if s.weight is not None]
    sizes = np.array([s.parameters for s in weighted], np.float64)
    low, high = max(LEAST, int(bits) - SPREAD), min(MOST, int(bits) + SPREAD)
    widths = rng.integers(low, high + 1, len(weighted))
    for _ in range(100 * len(widths)):
        missed = bits - widths @ sizes / sizes.sum()
        if abs(missed) <= NEAR:
            break
        place = rng.integers(len(widths))
        widths[place] = np.clip(widths[place] + np.sign(missed).astype(int), low, high)
    by_name = {s.name: int(b) for s, b in zip(weighted, widths, strict=True)}
    least, most = max(3, int(bits) - 1), min(MOST, int(bits) + 3)
    return {
        s.name: SiteBits(
            _format(rng, by_name[s.name], signed=True) if s.name in by_name else None,
            _format(rng, int(rng.integers(least, most + 1)), signed=False, scales=scales),
        )
        for s in sites
    }


def _format(rng, bits: int, *, signed: bool, **options) -> OperandFormat:
    splits = SPLITS.get(bits, ())
    if splits and rng.random() < FLOATS:
        return OperandFormat(FloatFormat(*splits[rng.integers(len(splits))]), **options)
    return OperandFormat(IntFormat(bits, signed=signed), **options)


def mean_bits(recipe: Recipe, sites: Sequence[Site], num_steps: int) -> tuple[float, float]:
    """Return the average bits of weights, by their number, and of activations, by products."""
    which = recipe.which(num_steps)
    sums = np.zeros((2, 2))
    for site in sites:
        for k, bits in enumerate(recipe.choices(site.name)):
            share = np.mean(which == k)
            for row, entry, size in ((0, bits.weight, site.parameters),
                                     (1, bits.activation, site.macs)):  # fmt: skip
                if entry is not None:
                    sums[row] += share * size * np.array([width_of(entry), 1])
    return tuple(sums[:, 0] / sums[:, 1])
