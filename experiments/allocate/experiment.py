"""Recipes within a budget of bits: uniform, from a sum of squares, and from errors that add.

    python -m experiments.allocate                                 the shipped DiT
    python -m experiments.allocate --checkpoint fashion_unet
    python -m experiments.allocate --budget-bits 4.5
    python -m experiments.allocate --tables baselines fewer chips

A budget of b bits is what uniform weights of b bits take, scales included; between two widths it is
in proportion. Every site has a choice of widths ("widths"), or of widths and several roundings of
each, which cost no bits ("free"). For both and every budget, on the same fresh noises:

    uniform           the best width and rounding for all sites, with what is left of the budget at
                      the smallest of them
    sum of squares    the optimum if errors of sites did not correlate (`strategies.choose`)
    vector sum        the search on the sum of the error vectors of sites (`choose_together`), to
                      first order from a few adjoint passes (`sketched_algebra`)
    again             the same, with gradients taken at what the search has found
    runs              the search on vectors from a run for each site and choice (`error_algebra`),
                      for widths alone

Three splits of noise: one for the vectors; one on which the best of several uniform recipes is
chosen, and vector sum or again (*); and fresh noise. The last part draws recipes at random, of
each width and its neighbours, and compares three forecasts with what is measured on fresh noise:
the sums of squares and of vectors, and that of vectors from runs.

Further tables: "baselines" has what the field does (`strategies.baselines`) beside uniform and the
vector sum, with the sampling runs that each takes, those of `num_noises` samples; "fewer" what is
found from fewer probes and noises; "chips" recipes of weights, integers and 8-bit floats, each
chosen for one chip and priced on all; "shapes" the same formats on a large DiT by its shapes.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from experiments.allocate import baselines, chips, plots
from experiments.allocate.rows import BASELINES, BUDGET, CHIPS, FEWER, FORECAST, SHAPES, named
from experiments.harness import command, networks, subject
from experiments.harness.command import option
from qdiffjax import hardware, results, strategies
from qdiffjax._checks import require
from qdiffjax.strategies import recommendation

WIDTHS, FREE = "widths", "free"
TABLES = ("budgets", FORECAST, BASELINES, FEWER, CHIPS, SHAPES)
CHIP_NAMES = tuple(chip.name for chip in hardware.CHIPS)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    budget_bits: tuple[float, ...] = option((4.0, 4.5, 5.0, 6.0), "Budgets.", least=2, most=8)
    widths: tuple[int, ...] = option((2, 3, 4, 5, 6, 8), "Widths of weights.", least=2, most=16)
    roundings: tuple[str, ...] = option(
        ("sums", "nearest", "mse sums"),
        "Ways to round, words of a recipe; the first is that of the family of widths.",
    )
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(20, "Steps of the sampler.", least=1)
    num_noises: int = option(48, "Noises of the adjoint passes.", least=1)
    num_probes: int = option(8, "Adjoint passes.", least=1)
    batch_size: int = option(8, "Noises of a run: of the vectors from runs, of the split that "
                             "chooses.", least=1)  # fmt: skip
    num_samples: int = option(64, "Fresh noises.", least=2)
    num_rounds: int = option(1, "How often vectors are taken again.", least=1)
    num_recipes: int = option(12, "Recipes at random of the forecasts, for each width.", least=2)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of sites to quantize, see `sites.match`."
    )
    tables: tuple[str, ...] = option(TABLES[:2], "What to measure.", choices=TABLES)
    num_scores: int = option(2000, "Recipes that a search scores by forecast.", least=1)
    search_runs: tuple[int, ...] = option(
        (25,), "Sampling runs of a search by measured scores.", least=1
    )
    chips: tuple[str, ...] = option(
        ("H200", "v5e", "v7x", "laptop"), "Chips for which recipes are chosen.", choices=CHIP_NAMES
    )
    chip_batch: int = option(1, "Samples of a call on a chip.", least=1)
    chip_share: float = option(0.25, "Share of what a chip could gain that is given up.", least=0,
                               most=1)  # fmt: skip
    shapes: tuple[str, ...] = option(
        ("dit_xl_2",), "Networks known by their shapes, on every chip.",
        choices=tuple(networks.SIZES),
    )  # fmt: skip
    shapes_batch: int = option(32, "Samples of a call of these.", least=1)
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse budgets beyond the widths."""
        ends = min(self.widths), max(self.widths)
        for bits in self.budget_bits:
            require(ends[0] <= bits <= ends[1], got=f"budget_bits = {bits:g}",
                    expected=f"{ends[0]} to {ends[1]}, the widths that are offered",
                    remedy="widen --widths")  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows of every (family, budget) and of the forecasts; touches no file.

    Arrays of a budget: errors of each way, RMSE of the fresh samples [num_samples]; pick of each
    way [sites]. Of the forecasts: measured, vectors, squares, runs [recipes].
    Options as `command.parts`.
    """
    steps_of = functools.partial(subject.SAMPLERS[config.sampler], num_steps=config.num_steps)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed, takes_cond=True)
    steps = steps_of(here.denoiser.schedule)
    keys = jax.random.split(jax.random.key(config.seed), 5)

    @functools.cache
    def world(family: str):
        """What is offered, the three splits of noise, and both algebras in full precision."""
        words = config.roundings if family == FREE else config.roundings[:1]
        names = [f"W{bits} {rounding}" for bits in config.widths for rounding in words]
        choices = strategies.offer(here.calibration, steps, names, sites=config.sites)
        nums = (config.num_noises, 2 * config.batch_size, config.num_samples)
        trials = [strategies.trial(choices, key, num, config.batch_size)
                  for key, num in zip(keys[:3], nums, strict=True)]  # fmt: skip
        algebra_fn = functools.partial(
            strategies.sketched_algebra, trials[0], keys[4], num_probes=config.num_probes
        )
        few = strategies.trial(choices, keys[0], config.batch_size)
        runs = None if family == FREE else strategies.error_algebra(few)
        return choices, trials, algebra_fn, algebra_fn(), runs

    @functools.cache
    def scores():
        return baselines.Scores(world(WIDTHS)[1][0], keys[3])

    def total(family: str, bits: float) -> float:
        return budget_of(world(family)[0], config.roundings[0], config.widths, bits)

    fns: dict[str, Callable] = {
        BUDGET: lambda family, bits: _budget(config, family, bits, world(family), keys[3]),
        FORECAST: lambda: _forecasts(config, world(WIDTHS)),
        BASELINES: lambda bits: baselines.beside(config, bits, total(WIDTHS, bits), world(WIDTHS),
                                                 scores(), keys[3]),
        FEWER: lambda family: baselines.fewer(
            config, family, {bits: total(family, bits) for bits in config.budget_bits},
            world(family), keys[3]),
        CHIPS: lambda: chips.crossing(config, here, steps, keys),
        SHAPES: lambda name: chips.by_shapes(name, config.shapes_batch),
    }  # fmt: skip
    parts = _parts(config)
    freed = {"budget_bits": None, "tables": None}
    mark = results.fingerprint(dataclasses.asdict(config) | freed, here.mark())

    def measure(part: str):
        kind, *rest = parts[part]
        return fns[kind](*rest)

    done = command.parts(parts, measure, mark, **options)
    return command.by_part(done), [row for _, rows in done.values() for row in rows]


def _parts(config) -> dict[str, tuple]:
    """Return {name: (kind, what it is of)} of everything that is asked for."""
    budgets = config.budget_bits
    by_table: dict[str, dict[str, tuple]] = {
        "budgets": {f"{family}, {bits:g} bits": (BUDGET, family, bits)
                    for family in (WIDTHS, FREE) for bits in budgets},
        FORECAST: {FORECAST: (FORECAST,)},
        BASELINES: {f"baselines, {bits:g} bits": (BASELINES, bits) for bits in budgets},
        FEWER: {f"fewer, {WIDTHS}": (FEWER, WIDTHS)},
        CHIPS: {CHIPS: (CHIPS,)},
        SHAPES: {f"shapes, {name}": (SHAPES, name) for name in config.shapes},
    }  # fmt: skip
    return {name: part for table in config.tables for name, part in by_table[table].items()}


def budget_of(choices: strategies.Choices, rounding: str, widths, bits: float) -> float:
    """Return what uniform weights of so many bits take, in proportion between two widths."""
    totals = [choices.total(choices.pick(f"W{width} {rounding}")) for width in sorted(widths)]
    return float(np.interp(bits, sorted(widths), totals))


def _budget(config, family: str, bits: float, world, key):
    choices, (first, second, fresh), algebra_fn, algebra, runs = world
    total = budget_of(choices, config.roundings[0], config.widths, bits)
    algebras, picks = recommendation.linearized_again(
        lambda pick: algebra_fn(around=pick), algebra, total, config.num_rounds
    )
    plain = recommendation.uniform_picks(choices, total)
    knapsack = strategies.choose(choices.bits, algebra.alone**2, total)
    ways = {
        "uniform": (algebra, min(plain, key=second.rmse)),
        "sum of squares": (algebra, knapsack.choice),
        "vector sum": (algebra, picks[0]),
        "again": (algebras[-1], picks[-1]),
    }
    if runs is not None:
        ways["runs"] = runs, recommendation.least_error(runs, total).choice
    chosen = min(("vector sum", "again"), key=lambda way: second.rmse(ways[way][1]))
    errors = {way: fresh.errors(pick) for way, (_, pick) in ways.items()}
    floors = {id(own): recommendation.lower_bound(own, total)
              for own in {id(own): own for own, _ in ways.values()}.values()}  # fmt: skip
    rows = []
    for way, (own, pick) in ways.items():
        rmse, _, ratio = recommendation.compared(errors[way], errors["uniform"], key)
        rows.append({
            "kind": BUDGET, "family": family, "budget": bits, "way": way,
            "bits": choices.mean_bits(pick), "predicted": own.predicted(pick),
            "squares": own.additive(pick), "own": first.rmse(pick), "is_chosen": way == chosen,
            **named("rmse", rmse), **named("ratio", ratio),
            "floor": floors[id(own)], "sample_runs": own.num_runs * own.vectors.shape[2],
            "choices": [choices.names[k] for k in pick], "sites": list(choices.sites),
        })  # fmt: skip
    arrays = {f"errors {way}": values for way, values in errors.items()}
    return arrays | {f"pick {way}": pick for way, (_, pick) in ways.items()}, rows


def _forecasts(config, world):
    """Compare both sums with what is measured, over recipes drawn at random around each width."""
    choices, (_, _, fresh), _, algebra, runs = world
    rng = np.random.default_rng(config.seed)
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    order = np.argsort(choices.bits.sum(0))
    for place, column in enumerate(order):
        near = order[max(0, place - 1) : place + 2]
        picks = [rng.choice(near, size=len(choices.sites)) for _ in range(config.num_recipes)]
        found = {"measured": [fresh.rmse(pick) for pick in picks],
                 "vectors": [algebra.predicted(pick) for pick in picks],
                 "squares": [algebra.additive(pick) for pick in picks],
                 "runs": [runs.predicted(pick) for pick in picks]}  # fmt: skip
        name = choices.names[column].split()[0]
        arrays |= {f"{name} {what}": np.array(values) for what, values in found.items()}
        rows.append({"kind": FORECAST, "width": name, **found})
    return arrays, rows


EXPERIMENT = command.experiment(
    Config, run, plots=plots, quick={"budget_bits": (4.0, 4.5), "widths": (3, 4, 5), "num_steps": 4,
                                     "roundings": ("sums", "nearest"), "num_noises": 4,
                                     "num_samples": 8, "num_recipes": 2, "batch_size": 4,
                                     "num_scores": 20, "search_runs": (4,)}
)  # fmt: skip
