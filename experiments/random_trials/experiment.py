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
from collections.abc import Callable

import jax
import numpy as np

from experiments.harness import old_command as command
from experiments.random_trials import draws, plots
from experiments.random_trials import measure as parts
from qdiffjax import labels
from qdiffjax.analysis import divergences
from qdiffjax.analysis.bounds import laws, pathwise

TOLERANCE = 1e-9  # relative; and 1e-12 of the largest state, the rounding of float64


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    num_network: int = 6144
    num_data: int = 6144
    num_multistep: int = 2048
    num_gaussian: int = 4096
    num_samples: int = 6
    chunk: int = 512
    seed: int = 0


HELP = {
    "num_network": "trials of random networks; 0 skips a family",
    "num_data": "trials of the optimal denoiser of random data",
    "num_multistep": "trials of samplers with memory",
    "num_gaussian": "trials of Gaussian chains, whose laws are known",
    "num_samples": "samples of a trial",
    "chunk": "trials that run together",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if min(dataclasses.astuple(config)) < 0 or config.num_samples < 2 or config.chunk < 1:
        raise ValueError("expected no negative number, at least 2 samples and chunks of 1.")


# What each bound is, and whether its assumption is guaranteed in these worlds.
TABLE: dict[str, tuple[Callable, bool]] = {
    "first order + remainder": (pathwise.remainder_bound, True),
    "radius of the remainder": (pathwise.remainder_bound, True),
    "Gronwall, 3 nodes": (pathwise.gronwall, False),
    "Gronwall, 9 nodes": (pathwise.gronwall, False),
    "Gronwall, 9 nodes + curvature": (pathwise.gronwall, True),
    "Gronwall, log-norm + curvature": (pathwise.gronwall, True),
    "Gronwall, every x": (pathwise.gronwall, True),
    "log-concave, DDIM": (pathwise.log_concave_bound, True),
    "Minkowski, every x": (laws.minkowski_bound, True),
    "Minkowski, laws": (laws.minkowski_bound, True),
    "W2 lower": (divergences.w2_lower, True),
    "path KL": (divergences.path_kl, True),
    "KL of a projection": (divergences.gaussian_projected_kl, True),
}  # fmt: skip


def stack(worlds):
    """Stack a list of trials leaf by leaf."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(a) for a in leaves]), *worlds)


def compare(measured, bound, floor):
    """Return (counted, violated, finite, ratio), each by the shape of the comparison.

    Not a number means that a bound does not apply. What is below the rounding of the states
    compares nothing.
    """
    applies = ~np.isnan(bound)
    finite = np.isfinite(bound)
    counted = finite & (measured > floor)
    violated = counted & (bound < measured * (1 - TOLERANCE) - floor)
    ratio = np.where(counted, bound / np.where(measured > 0, measured, 1), np.nan)
    return counted, violated, finite[applies], ratio


class Tally:
    """Counts and tightness of one bound."""

    def __init__(self):
        self.comparisons = self.violations = self.finite = self.applicable = 0
        self.ratios: list[np.ndarray] = []

    def add(self, measured, bound, floor):
        """Count [trials, steps, batch]; the last step's ratio is kept."""
        counted, violated, finite, ratio = compare(measured, bound, floor)
        self.comparisons += int(counted.sum())
        self.violations += int(violated.sum())
        self.finite += int(finite.sum())
        self.applicable += finite.size
        self.ratios.append(ratio[:, -1])

    def row(self, name: str) -> dict:
        """Return the row of the table."""
        ratios = np.concatenate([r.ravel() for r in self.ratios])
        ratios = ratios[np.isfinite(ratios)]
        quantiles = np.quantile(ratios, [0, 0.05, 0.5, 0.95]) if ratios.size else [np.nan] * 4
        fn, guaranteed = TABLE[name]
        label = labels.label(fn)
        return {
            "bound": name, "kind": str(label.kind), "assumption": label.assumption,
            "guaranteed": guaranteed, "trials": sum(len(r) for r in self.ratios),
            "comparisons": self.comparisons, "violations": self.violations,
            "finite": self.finite / max(self.applicable, 1),
            "ratio_min": quantiles[0], "ratio_5": quantiles[1], "ratio_median": quantiles[2],
            "ratio_95": quantiles[3],
        }  # fmt: skip


def family_trials(config: Config, family: str, num: int, seed: int, bar):
    """Run one family chunk by chunk; yields (bounds, brackets, largest state, names)."""
    rng, key = np.random.default_rng([config.seed, seed]), jax.random.key(config.seed + seed)

    @jax.jit
    @jax.vmap
    def trial(world, key):
        found, pair = parts.pathwise(world, family, key, config.num_samples)
        size = abs(pair.xs).max() + abs(pair.xs_hat).max()
        return found, parts.bracket(pair, key), size

    for start in range(0, num, config.chunk):
        count = min(config.chunk, num - start)
        worlds = stack([draws.draw(rng, family) for _ in range(count)])
        keys = jax.random.split(jax.random.fold_in(key, start), count)
        yield *jax.device_get(trial(worlds, keys)), worlds.names, worlds.format
        bar.update(count)


def exact_w2(x, y):
    """W2 of each trial's two sets of final samples, by assignment [trials]."""
    squares = [divergences.assignment_w2_squared(a, b) for a, b in zip(x, y, strict=True)]
    return np.sqrt(squares)


def run_pathwise(config: Config, tallies: dict, bar):
    """Fill the tallies of all sampled trials; return what each trial was [trials, 4]."""
    counts = {"network": config.num_network, "data": config.num_data,
              "multistep": config.num_multistep}  # fmt: skip
    drawn = [np.zeros((0, 4), int)]
    for seed, (family, num) in enumerate(counts.items()):
        for chunk in family_trials(config, family, num, seed, bar):
            found, (x, y, low), size, names, format = chunk
            floor = 1e-12 * size[:, None]
            for name, pair in found.items():
                measured, bound = (a[:, 2:] for a in pair)
                tallies.setdefault(name, Tally()).add(measured, bound, floor[..., None])
            exact = exact_w2(x, y)[:, None]
            tallies.setdefault("W2 lower", Tally()).add(low[:, None], exact, floor)
            drawn.append(np.column_stack([names, format]))
    return np.concatenate(drawn)


def run_gaussian(config: Config, tallies: dict, bar):
    """Fill the tallies of the Gaussian chains: laws, not samples."""
    rng = np.random.default_rng([config.seed, 3])
    trial = jax.jit(jax.vmap(parts.gaussian_trial))
    for start in range(0, config.num_gaussian, config.chunk):
        count = min(config.chunk, config.num_gaussian - start)
        found = jax.device_get(trial(stack([draws.draw_gaussian(rng) for _ in range(count)])))
        for name, (measured, bound) in found.items():
            floor = np.full((count, 1), 1e-12)
            tallies.setdefault(name, Tally()).add(measured[:, None], bound[:, None], floor)
        bar.update(count)


def run(config: Config, *, progress: bool = False):
    """Return arrays and a row for each bound.

    Arrays: `log10_ratio/<bound>` of bound / measured at the last step, the tightest sample of each
    trial that the bound was tried on, in the order of the trials; `trials`, what the sampled ones
    were, as indices into `data`, `schedules`, `samplers`, `formats`.
    """
    from tqdm import tqdm

    tallies: dict[str, Tally] = {}
    total = config.num_network + config.num_data + config.num_multistep + config.num_gaussian
    with jax.enable_x64(True), tqdm(total=total, disable=not progress, unit="trial") as bar:
        drawn = run_pathwise(config, tallies, bar)
        run_gaussian(config, tallies, bar)
    arrays = {
        "trials": drawn.astype(np.int8), "trial_columns": np.array(
            ["data", "schedule", "sampler", "format"]),
        "data": np.array(draws.DATA), "schedules": np.array(draws.SCHEDULES),
        "samplers": np.array(draws.SAMPLERS), "formats": np.array(draws.FORMATS),
    }  # fmt: skip
    for name, tally in tallies.items():
        ratios = np.concatenate([r.reshape(len(r), -1) for r in tally.ratios])
        arrays[f"log10_ratio/{name}"] = np.log10(_smallest(ratios)).astype(np.float32)
    return arrays, [tally.row(name) for name, tally in tallies.items()]


def _smallest(ratios):
    """The tightest sample of each trial [trials], nan if none was compared."""
    filled = np.where(np.isnan(ratios), np.inf, ratios).min(axis=1)
    return np.where(np.isinf(filled), np.nan, filled)


EXPERIMENT = command.Experiment(
    "random_trials", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table, resumes=False,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and the figure."""
    return command.main(EXPERIMENT, argv)
