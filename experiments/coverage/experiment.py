"""Do guarantees hold? Coverage against pools whose law is known, and recipes chosen by promise.

    python -m experiments.coverage                             toys and a small network, minutes
    python -m experiments.coverage --checkpoint fashion_dit    a shipped network too, about an hour

A pool is 10^5 scores; drawn with replacement, its law is the pool's own, so that quantiles, means
and shares are known exactly. Pools: the optimal denoiser of a Gaussian mixture, its two products
rounded; a network of one hidden layer fitted to it; scores with heavy tails (lognormal, and Pareto
without a mean); a shipped network on demand. From each, many times: a few scores, what they
guarantee, and whether it holds.

  next sample   one more draw against `conformal_bound`; fails alpha of the time or a little less
  its quantile  the pool's coverage against the quantile of its Beta law; fails delta of the time
  mean          the pool's mean against `betting_upper` and `bernstein_upper`; at most delta
  choices       `fixed_sequence` over recipes, the third of which is just not good enough, as bad as
                can be for the test; broken if any recipe that passed is not. Beside it the choice
                by what was measured, without p-values
  W2            how many samples promise W2 within three times its measured size, said before
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments.coverage import plots, pools
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import diffusion, precision, promises, results
from qdiffjax._checks import require
from qdiffjax.analysis import guarantees
from qdiffjax.networks import denoisers


def _check_checkpoint(name: str) -> None:
    if name:
        subject.check_checkpoint(name)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = option(
        "", "Folder of a checkpoint or the name of a shipped one, for a pool more; '' for none.",
        each=_check_checkpoint,
    )  # fmt: skip
    recipe: str = option(
        "W4A8", "Recipe of the network, in words.", each=precision.parse_recipe,
    )  # fmt: skip
    num_toy_steps: int = option(20, "Steps of DDIM of the toy and the small network.", least=1)
    num_steps: int = option(5, "Steps of DDIM of the network.", least=1)
    bits: tuple[int, ...] = option(
        (8, 6, 5, 4, 3), "Widths of their weights, 8-bit activations: their recipes in order.",
        least=2, most=8,
    )  # fmt: skip
    num_pool: int = option(100_000, "Scores of a pool.", least=64)
    num_scores: tuple[int, ...] = option((64, 512), "Scores of a guarantee.", least=2)
    num_repetitions: int = option(2000, "Guarantees of each kind.", least=2)
    num_choice: int = option(256, "Scores of a choice among recipes.", least=2)
    alpha: float = option(0.1, "Probability that the next sample is worse.", above=0, below=1)
    delta: float = option(0.05, "Probability that the scores are a bad draw.", above=0, below=1)
    share: float = option(0.1, "Share of samples that a promise allows to exceed a tolerance.",
                          above=0, below=1)  # fmt: skip
    w2_factor: float = option(3.0, "Promised W2 over measured.", above=1)
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse fewer scores than alpha supports; raises ValueError."""
        need = guarantees.samples_needed(self.alpha)
        require(min(self.num_scores) >= need, got=f"num_scores = {min(self.num_scores)}",
                expected=f"at least {need} at alpha = {self.alpha:g}",
                remedy="take more")  # fmt: skip


TOY, FITTED, TAILS = "mixture", "fitted network", ("lognormal", "Pareto")
REGION = 0.99  # of the number of failures, if the guarantee is exact
SPARE = 2.0  # samples over those that scores without variance need: a pilot is rough, for W2
FEW = 200  # repetitions of choices that are also told by themselves


def run(config: Config, *, progress: bool = False, **options):
    """Return arrays and rows of every pool; touches no file.

    Arrays of a pool: its scores of the first recipe, their quantiles [1001]. Options as
    `command.parts`.
    """
    network = denoisers.load(config.checkpoint) if config.checkpoint else None
    if network is not None:
        diffusion.ddim(network.schedule, config.num_steps)  # refuses more than it has, before work

    def pool_of(name: str) -> pools.Pool:
        if name in (TOY, FITTED):
            law = pools.mixture(config.seed)
            denoiser, sites = pools.mixture_denoiser(law), ("keys", "values")
            if name == FITTED:
                denoiser, sites = pools.fitted_denoiser(law, config.seed), ("in", "out")
            words = [f"W{bits}A8" for bits in config.bits]
            return pools.of_network(denoiser, config.num_toy_steps, words, sites,
                                    config.num_pool, config.seed, progress)  # fmt: skip
        if name in TAILS:
            return pools.heavy_tails(config.num_pool, config.seed)[name]
        assert network is not None
        return pools.of_network(network, config.num_steps, [config.recipe], None,
                                config.num_pool, config.seed, progress)  # fmt: skip

    def measure(name: str):
        pool, rng = pool_of(name), np.random.default_rng(config.seed + 1)
        rows: list[dict[str, Any]] = []
        for num in config.num_scores:
            rows += bounds_rows(config, pool, num, rng)
        if name not in TAILS:
            rows.append(w2_rows(config, pool, rng))
        if len(pool.names) > 1:
            rows += choices_rows(config, pool, rng)
        quantiles = np.quantile(pool.values, np.linspace(0, 1, 1001), axis=1).T
        return {"quantiles": quantiles}, [{"pool": name} | row for row in rows]

    names = [TOY, FITTED, *TAILS, *([config.checkpoint] if config.checkpoint else [])]
    weights = jax.tree.leaves(network.params) if network else []
    mark = results.fingerprint(dataclasses.asdict(config), *map(np.asarray, weights))
    done = command.parts(names, measure, mark, progress=progress, **options)
    return command.by_part(done), [row for _, rows in done.values() for row in rows]


def counted(failures, least_rate: float, most_rate: float) -> dict[str, Any]:
    """Return failures [repetitions] counted, beside the region of their number.

    least_rate, most_rate: how often they may happen; the region holds 99 % at both ends.
    """
    num, tail = len(failures), (1 - REGION) / 2
    low, high = stats.binom.ppf(tail, num, least_rate), stats.binom.ppf(1 - tail, num, most_rate)
    found = int(np.sum(failures))
    return {"repetitions": num, "failures": found, "least": int(low), "most": int(high),
            "within": bool(low <= found <= high)}  # fmt: skip


def bounds_rows(config, pool: pools.Pool, num: int, rng) -> list[dict[str, Any]]:
    """Return a row for each kind of guarantee of the last recipe but one, or the only one."""
    which = max(len(pool.names) - 2, 0)
    values, bounded = pool.values[which], pool.bounded[which]
    index = rng.integers(len(values), size=(num + 1, config.num_repetitions))
    about = {"kind": "bound", "recipe": pool.names[which], "num": num}
    found = guarantees.conformal_bound(values[index[:-1]], config.alpha, config.delta)
    covered = np.searchsorted(np.sort(values), found.bound, side="right") / len(values)
    exact = 1 - found.rank / (num + 1)
    median = float(np.median(found.bound) / np.quantile(values, 1 - config.alpha))
    rows = [
        {"what": "next sample", "over": median, **counted(
            values[index[-1]] > found.bound, exact, config.alpha)},
        {"what": "its quantile", "over": None, **counted(
            covered < found.coverage, config.delta, config.delta)},
    ]  # fmt: skip
    for name, upper_fn in UPPERS.items():
        upper = upper_fn(bounded[index[:-1]], config.delta, pool.most)
        rows.append({"what": f"mean, {name}", "over": float(np.median(upper) / bounded.mean()),
                     **counted(upper < bounded.mean(), 0.0, config.delta)})  # fmt: skip
    return [about | row for row in rows]


UPPERS: dict[str, Callable] = {
    "betting": guarantees.betting_upper, "Bernstein": guarantees.bernstein_upper,
}  # fmt: skip


def w2_rows(config, pool: pools.Pool, rng) -> dict[str, Any]:
    """Return what a planned number of samples promises of W2, over what they measure."""
    which = max(len(pool.names) - 2, 0)
    squares = pool.bounded[which]
    pilot = np.sqrt(np.mean(rng.choice(squares, 64)))
    planned = SPARE * promises.samples_for_w2(
        float(pilot), config.delta, config.w2_factor, pool.most
    )
    num = min(int(np.ceil(planned)), len(squares))  # a pool has no more to say
    drawn = rng.choice(squares, size=(num, FEW))
    upper = guarantees.betting_upper(drawn, config.delta, pool.most)
    ratio = np.sqrt(upper / drawn.mean(axis=0))
    return {"kind": "W2", "recipe": pool.names[which], "num": num, "pilot": float(pilot),
            "measured": float(np.sqrt(squares.mean())), "promised": float(np.median(upper) ** 0.5),
            "ratio": float(np.median(ratio)), "ratio_95": float(np.quantile(ratio, 0.95)),
            **counted(upper < squares.mean(), 0.0, config.delta)}  # fmt: skip


def choices_rows(config, pool: pools.Pool, rng) -> list[dict[str, Any]]:
    """Return a row for each way to choose: how often any recipe that passed is not good enough.

    A recipe keeps its promise if its share of samples above the tolerance, or its mean, is below
    what is promised: exactly that of the third recipe.
    """
    third = min(2, len(pool.names) - 1)
    num_pool = pool.values.shape[1]
    tolerance = np.sort(pool.values[third])[num_pool - int(np.ceil(config.share * num_pool)) - 1]
    promise = float(pool.bounded[third].mean())
    keeps = {"share": np.mean(pool.values > tolerance, axis=1) < config.share,
             "mean": pool.bounded.mean(axis=1) < promise}  # fmt: skip
    index = rng.integers(num_pool, size=(config.num_choice, config.num_repetitions))
    share, mean = pool.values[:, index], pool.bounded[:, index]
    ways = {
        ("share", "binomial"): [guarantees.share_p_value(s, tolerance, config.share)
                                for s in share],
        ("share", "as measured"): [measured_p_value(np.mean(s > tolerance, axis=0) < config.share)
                                   for s in share],
        ("mean", "betting"): [guarantees.betting_p_value(s, promise, pool.most) for s in mean],
        ("mean", "Hoeffding-Bentkus"): [
            guarantees.hoeffding_bentkus_p_value(s, promise, pool.most) for s in mean],
        ("mean", "as measured"): [measured_p_value(np.mean(s, axis=0) < promise) for s in mean],
    }  # fmt: skip
    rows = []
    for (what, how), p_values in ways.items():
        good = dict(zip(pool.names, keeps[what], strict=True))
        passed = [guarantees.fixed_sequence(dict(zip(pool.names, p, strict=True)), config.delta)
                  .passed for p in np.transpose(p_values)]  # fmt: skip
        broken = np.array([not all(good[name] for name in names) for names in passed])
        rows.append({
            "kind": "choices", "what": what, "how": how, "num": config.num_choice,
            "recipes": len(good), "keep": int(sum(good.values())),
            "passed": float(np.mean([len(names) for names in passed])),
            "broken_of_few": int(np.sum(broken[:FEW])), "few": min(FEW, len(broken)),
            **counted(broken, 0.0, config.delta),
        })  # fmt: skip
    return rows


def measured_p_value(looks_good) -> np.ndarray:
    """Return what passes whatever looks good: no p-value at all."""
    return np.where(looks_good, 0.0, 1.0)


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"num_pool": 2000, "num_repetitions": 200, "num_scores": (64,)},
)  # fmt: skip
