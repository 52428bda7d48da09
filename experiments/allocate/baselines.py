"""What the field does within the same budget, and its price in sampling runs."""

import dataclasses
import functools

import jax
import numpy as np

from experiments.allocate.rows import BASELINES, FEWER, named
from qdiffjax import strategies
from qdiffjax.strategies import baselines, recommendation

NUM_TIMES = 8  # at which gradients of the denoising loss are taken
ENDS, FISHER, HESSIAN, ALONE = "dear ends", "Fisher", "Hessian trace", "each site alone"
RANDOM, EVOLUTION = "random", "evolution"
SKETCH = "vector sum"


class Scores:
    """Numbers for each site and choice that methods of the field add, each found once."""

    def __init__(self, trial: strategies.Trial, key):
        self._trial, self._key = trial, key

    @functools.cached_property
    def fisher(self) -> np.ndarray:
        """Tr F_l |dw|^2 / n_l [sites, choices]."""
        choices = self._trial.choices
        blank = np.zeros((*choices.bits.shape, 1, 1), np.float32)
        algebra = strategies.ErrorAlgebra(choices, blank, np.zeros(choices.bits.shape), None, 0)
        found = strategies.sensitivity_of(algebra, self._trial, self._key, num_times=self.num_times)
        return found.fisher**2

    @functools.cached_property
    def hessian(self) -> np.ndarray:
        """Tr H_l |dw|^2 / n_l [sites, choices]."""
        traces = strategies.hessian_traces(self._trial, self._key, num_times=self.num_times)
        return traces[:, None] * self._trial.choices.weight_rmse**2

    @property
    def num_times(self) -> int:
        """At how many of the sampler's times they are taken."""
        return min(NUM_TIMES, self.num_steps)

    @property
    def num_steps(self) -> int:
        """Network calls of a sampling run."""
        return len(self._trial.choices.steps.t)

    def runs(self, calls: int) -> float:
        """Return sampling runs of the samples, and of so many calls' worth at each time."""
        return 1 + calls * self.num_times / self.num_steps


def beside(config, bits: float, total: float, world, scores: Scores, key):
    """Return (arrays, rows) of every method at a budget, on the same fresh noise.

    A run is one of `config.num_noises` samples; a gradient counts as three network calls, a
    Hessian-vector product as six.
    """
    choices, (_, second, fresh), _, algebra, runs = world
    uniform = min(recommendation.uniform_picks(choices, total), key=second.rmse)
    few = strategies.trial(choices, _key(config), config.batch_size)
    rng = np.random.default_rng([config.seed, round(1000 * bits)])
    part = config.batch_size / config.num_noises
    search_of = {RANDOM: baselines.random_search, EVOLUTION: baselines.evolution}
    ways = {
        "uniform": (0, uniform),
        ENDS: (0, baselines.dear_ends(choices, total)),
        FISHER: (scores.runs(3), baselines.additive(choices, scores.fisher, total)),
        HESSIAN: (scores.runs(6), baselines.additive(choices, scores.hessian, total)),
        ALONE: (runs.num_runs * part, baselines.additive(choices, runs.alone**2, total)),
        SKETCH: (algebra.num_runs, recommendation.least_error(algebra, total).choice),
    }
    for name, search in search_of.items():
        ways[f"{name}, forecast"] = (
            algebra.num_runs, search(choices, algebra.predicted, total, config.num_scores, rng)
        )  # fmt: skip
    for num_runs in config.search_runs:
        num = max(1, int(num_runs / part) - 1)  # less the run in full precision
        for name, search in search_of.items():
            found = search(choices, few.rmse, total, num, rng)
            ways[f"{name}, {num_runs} runs"] = num_runs, found
    errors = {way: fresh.errors(pick) for way, (_, pick) in ways.items()}
    rows = []
    for way, (num_runs, pick) in ways.items():
        rmse, _, ratio = recommendation.compared(errors[way], errors["uniform"], key)
        rows.append({"kind": BASELINES, "budget": bits, "way": way, "runs": float(num_runs),
                     "bits": choices.mean_bits(pick), "predicted": algebra.predicted(pick),
                     **named("rmse", rmse), **named("ratio", ratio)})  # fmt: skip
    arrays = {f"errors {way}": values for way, values in errors.items()}
    return arrays | {f"pick {way}": pick for way, (_, pick) in ways.items()}, rows


def _key(config):
    """Return the key of the first split of noise, whose first samples the measured scores take."""
    return jax.random.split(jax.random.key(config.seed), 5)[0]


def fewer(config, family: str, totals: dict[float, float], world, key):
    """Return (arrays, rows): what is found from fewer probes or noises of the same sketch.

    Disjoint parts of it, on the same fresh noise as the whole.
    """
    choices, (_, second, fresh), _, algebra, _ = world
    noises, probes = algebra.vectors.shape[2:4]
    few = noises // 2
    sizes = [(noises, probes), (noises, probes * 3 // 4), (noises, probes // 2),
             (noises, probes // 4), (few, probes), (few, probes // 2)]  # fmt: skip
    sizes = list(dict.fromkeys((n, p) for n, p in sizes if n and p))
    rows = []
    arrays: dict[str, np.ndarray] = {}
    for bits, total in totals.items():
        uniform = min(recommendation.uniform_picks(choices, total), key=second.rmse)
        beside = fresh.errors(uniform)
        whole = None
        for n, p in sizes:
            for i in range(noises // n):
                for j in range(probes // p):
                    vectors = algebra.vectors[:, :, i * n : (i + 1) * n, j * p : (j + 1) * p]
                    part = dataclasses.replace(algebra, vectors=vectors)
                    pick = recommendation.least_error(part, total).choice
                    errors = fresh.errors(pick)
                    whole = errors if whole is None else whole
                    _, _, ratio = recommendation.compared(errors, beside, key)
                    _, _, loss = recommendation.compared(errors, whole, key)
                    rows.append({"kind": FEWER, "family": family, "budget": bits, "noises": n,
                                 "probes": p, "runs": (1 + 3 * p) * n / noises,
                                 **named("ratio", ratio), **named("loss", loss)})  # fmt: skip
                    arrays[f"{bits:g} bits, {n} x {p}, {i} {j}"] = errors
    return arrays, rows
