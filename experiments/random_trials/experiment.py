"""Do the bounds hold? Thousands of random denoisers, schedules, samplers and formats.

    python -m experiments.random_trials                  a few minutes on two CPU cores, float64

Every trial draws its own network (or data, whose optimal denoiser is known), noise schedule,
time grid, sampler and number format. No bound here uses the error that it bounds. Counted are the
comparisons of finite bounds from the second step on (the first is an identity), violations beyond
rounding, and how far the bounds are from what they bound at the last step. What cannot fail, such
as a coupling against the best coupling of the same samples, is left out. Gronwall with gains
looked up at a few nodes assumes that these catch the largest one, which nothing guarantees here:
marked by a star, it is an estimate, and its violations are the rate at which it misses.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.harness import command
from experiments.harness.command import option
from experiments.random_trials import draws, measure, plots
from qdiffjax import labels
from qdiffjax.analysis import bounds, divergences

TOLERANCE = 1e-9  # relative; and 1e-12 of the largest state, the rounding of float64


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    num_network: int = option(
        6144, "Number of trials of random networks; 0 skips a family.", least=0
    )
    num_data: int = option(
        6144, "Number of trials of the optimal denoiser of random data.", least=0
    )
    num_multistep: int = option(2048, "Number of trials of samplers with memory.", least=0)
    num_gaussian: int = option(
        4096, "Number of trials of Gaussian chains, whose laws are known.", least=0
    )
    num_samples: int = option(6, "Number of samples of a trial.", least=2)
    chunk: int = option(512, "Number of trials that run together.", least=1)
    seed: int = command.seed()


# What each bound is, and whether its assumption is guaranteed in these worlds.
TABLE: dict[str, tuple[Callable, bool]] = {
    "first order + remainder": (bounds.remainder_bound, True),
    "radius of the remainder": (bounds.remainder_bound, True),
    "Gronwall, 3 nodes": (bounds.gronwall, False),
    "Gronwall, 9 nodes": (bounds.gronwall, False),
    "Gronwall, 9 nodes + curvature": (bounds.gronwall, True),
    "Gronwall, log-norm + curvature": (bounds.gronwall, True),
    "Gronwall, every x": (bounds.gronwall, True),
    "log-concave, DDIM": (bounds.log_concave_bound, True),
    "Minkowski, every x": (bounds.minkowski_bound, True),
    "Minkowski, laws": (bounds.minkowski_bound, True),
    "W2 lower": (divergences.w2_lower, True),
    "path KL": (divergences.path_kl, True),
    "KL of a projection": (divergences.gaussian_projected_kl, True),
}  # fmt: skip


def stack(worlds):
    """Stack a list of trials, leaf by leaf."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(a) for a in leaves]), *worlds)


class Tally(NamedTuple):
    """Counts of one bound over some trials, and its ratios at the last step [trials, batch]."""

    comparisons: int
    violations: int
    finite: int
    applicable: int
    ratios: np.ndarray


def tally(measured, bound, floor) -> Tally:
    """Compare a bound with what it bounds, each [trials, steps, batch] or without a batch.

    Not a number means that a bound does not apply. What is below the rounding of the states,
    `floor`, compares nothing.
    """
    finite, applies = np.isfinite(bound), ~np.isnan(bound)
    counted = finite & (measured > floor)
    violated = counted & (bound < measured * (1 - TOLERANCE) - floor)
    ratio = np.where(counted, bound / np.where(measured > 0, measured, 1), np.nan)[:, -1]
    counts = [int(np.sum(a)) for a in (counted, violated, finite, applies)]
    return Tally(counts[0], counts[1], counts[2], counts[3], ratio.reshape(len(ratio), -1))


def row(name: str, tallies: list[Tally]) -> dict:
    """Return the row of a bound over all its trials."""
    ratios = np.concatenate([t.ratios.ravel() for t in tallies])
    ratios = ratios[np.isfinite(ratios)]
    quantiles = np.quantile(ratios, [0, 0.05, 0.5, 0.95]) if ratios.size else [np.nan] * 4
    fn, guaranteed = TABLE[name]
    label = labels.label(fn)
    return {
        "bound": name, "kind": str(label.kind), "assumption": label.assumption,
        "guaranteed": guaranteed, "trials": sum(len(t.ratios) for t in tallies),
        "comparisons": sum(t.comparisons for t in tallies),
        "violations": sum(t.violations for t in tallies),
        "finite": sum(t.finite for t in tallies) / max(sum(t.applicable for t in tallies), 1),
        "ratio_min": quantiles[0], "ratio_5": quantiles[1], "ratio_median": quantiles[2],
        "ratio_95": quantiles[3],
    }  # fmt: skip


def exact_w2(x, y):
    """Return W2 of each trial's two sets of final samples, by assignment [trials]."""
    squares = [divergences.assignment_w2_squared(a, b) for a, b in zip(x, y, strict=True)]
    return np.sqrt(squares)


Chunk = tuple[dict[str, Tally], np.ndarray]  # by bound; and what the trials were [trials, 4]


def sampled(config: Config, family: str, num: int, seed: int, bar) -> Iterator[Chunk]:
    """Run one family of sampled trials chunk by chunk."""
    rng, key = np.random.default_rng([config.seed, seed]), jax.random.key(config.seed + seed)

    @jax.jit
    @jax.vmap
    def trial(world, key):
        pairs, run = measure.trial(world, family, key, config.num_samples)
        size = abs(run.xs).max() + abs(run.xs_hat).max()
        return pairs, measure.bracket(run, key), size

    for start in range(0, num, config.chunk):
        count = min(config.chunk, num - start)
        worlds = stack([draws.draw(rng, family) for _ in range(count)])
        keys = jax.random.split(jax.random.fold_in(key, start), count)
        pairs, (x, y, low), size = jax.device_get(trial(worlds, keys))
        floor = 1e-12 * size[:, None]
        tallies = {name: tally(measured[:, 2:], bound[:, 2:], floor[..., None])
                   for name, (measured, bound) in pairs.items()}  # fmt: skip
        tallies["W2 lower"] = tally(low[:, None], exact_w2(x, y)[:, None], floor)
        yield tallies, np.column_stack([worlds.names, worlds.format])
        bar.update(count)


def gaussian(config: Config, bar) -> Iterator[Chunk]:
    """Run the Gaussian chains: laws, not samples."""
    rng = np.random.default_rng([config.seed, 3])
    trial = jax.jit(jax.vmap(measure.gaussian_trial))
    for start in range(0, config.num_gaussian, config.chunk):
        count = min(config.chunk, config.num_gaussian - start)
        pairs = jax.device_get(trial(stack([draws.draw_gaussian(rng) for _ in range(count)])))
        tallies = {name: tally(measured[:, None], bound[:, None], 1e-12)
                   for name, (measured, bound) in pairs.items()}  # fmt: skip
        yield tallies, np.zeros((0, 4), int)
        bar.update(count)


def run(config: Config, *, progress: bool = False):
    """Return arrays and a row for each bound.

    Arrays: `log10_ratio/<bound>` of bound / measured at the last step, the tightest sample of each
    trial that the bound was tried on, in the order of the trials; `trials`, what the sampled ones
    were, as indices into `data`, `schedules`, `samplers`, `formats`.
    """
    from tqdm import tqdm

    sizes = {"network": config.num_network, "data": config.num_data,
             "multistep": config.num_multistep}  # fmt: skip
    total = sum(sizes.values()) + config.num_gaussian
    chunks: list[Chunk] = []
    with jax.enable_x64(True), tqdm(total=total, disable=not progress, unit="trial") as bar:
        for seed, (family, num) in enumerate(sizes.items()):
            chunks += sampled(config, family, num, seed, bar)
        chunks += gaussian(config, bar)
    names = dict.fromkeys(name for tallies, _ in chunks for name in tallies)
    by_bound = {n: [tallies[n] for tallies, _ in chunks if n in tallies] for n in names}
    trials = np.concatenate([np.zeros((0, 4), int), *(trials for _, trials in chunks)])
    arrays = {
        "trials": trials.astype(np.int8), "trial_columns": np.array(
            ["data", "schedule", "sampler", "format"]),
        "data": np.array(draws.DATA), "schedules": np.array(draws.SCHEDULES),
        "samplers": np.array(draws.SAMPLERS), "formats": np.array(draws.FORMATS),
    }  # fmt: skip
    for name, tallies in by_bound.items():
        ratios = np.concatenate([t.ratios for t in tallies])
        arrays[f"log10_ratio/{name}"] = np.log10(_smallest(ratios)).astype(np.float32)
    return arrays, [row(name, tallies) for name, tallies in by_bound.items()]


def _smallest(ratios):
    """Return the tightest sample of each trial [trials], nan if none was compared."""
    filled = np.where(np.isnan(ratios), np.inf, ratios).min(axis=1)
    return np.where(np.isinf(filled), np.nan, filled)


EXPERIMENT = command.experiment(Config, run, plots=plots)
