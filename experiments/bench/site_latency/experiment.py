"""Latency of each site compiled alone, in real low precision beside full precision.

    python -m experiments.bench.site_latency            some minutes on two quiet cores
    python -m experiments.bench.site_latency --quick    few samples and rounds, to see that it runs

Every product of the network is a program of its own, with operands of the shapes that it has there
and with its own weight, stored as the recipe is lowered; rounding of its activations is part of it.
It takes turns, in random order, with the full-precision product of the same site. p50 and p99 are
percentiles of the rounds by the clock, so that p99 is nearly the largest of fewer than 100; the
ratio is that of the medians, with the 95 % interval of rounds resampled together. W8 is weights
alone, activations stay as they are (W8A16 in words rounds them to 16 bits, which no kernel does).

A site that a recipe leaves plain is the same program as in full precision and has its times. The
sum over sites pays for one start of a program at each site, and for what the compiler fuses with a
product in the network it does not pay; a call of the whole network is timed beside it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.site_latency import plots
from experiments.bench.site_latency.plots import CALL, FULL, SUM
from experiments.harness import alone, command, intervals, subject, timing
from experiments.harness.command import option
from qdiffjax import diffusion, precision, results
from qdiffjax._conditions import as_arguments
from qdiffjax.labels import Kind
from qdiffjax.precision.quantized import merge


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    checkpoint: str = subject.checkpoint()
    recipe: tuple[str, ...] = option(
        ("W8A8", "W4A8", "W8"), "Recipes in words, see `precision.parse_recipe`.",
        each=precision.parse_recipe,
    )  # fmt: skip
    batch: int = option(64, "Number of samples of a call.", least=1)
    num_steps: int = option(20, "Steps of the DDIM run that calibrates.", least=1)
    num_rounds: int = option(500, "Number of runs of each program.", least=1)
    seed: int = command.seed("Seed of the noise, of the order of turns and of the resampling.")


def run(config: Config, **options):
    """Return arrays and rows; touches no file. Options as `command.parts`.

    Arrays "<site>/seconds" and "<site>/cpu_seconds" [num_rounds, 1 + recipes], full precision
    first, and those of the call of the network. Rows: sites as they are run, their sum, the call.

    Raises:
      FileNotFoundError, ValueError: see `subject.prepare` and `precision.lower`.
    """
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    target = subject.prepare(config.checkpoint, steps_of, ("*",), config.seed, takes_cond=True)
    denoiser, steps = target.denoiser, steps_of(target.denoiser.schedule)
    x, cond = denoiser.draw(jax.random.key(config.seed), config.batch, steps.t[0])
    t = jnp.asarray(steps.t[0], jnp.float32)
    versions = {FULL: precision.Quantized(denoiser, {})}
    versions |= {words: precision.lower(target.calibration, words) for words in config.recipe}
    versions = {name: at_first_call(q.given(cond), steps) for name, q in versions.items()}
    products = alone.products(denoiser.eps_fn, denoiser.params, x, t, *as_arguments(cond))

    def measure(part: str) -> tuple[dict, dict]:
        if part == CALL:
            return of_call(versions, x, t, config)
        return of_site(products[part], target.calibration.weights.get(part), versions, config)

    mark = results.fingerprint(dataclasses.asdict(config), target.mark())
    done = command.parts([*products, CALL], measure, mark, **options)
    rows = [row for _, row in done.values()]
    return command.by_part(done), [*rows[:-1], total(rows[:-1]), rows[-1]]


def at_first_call(q: precision.Quantized, steps: diffusion.Steps) -> precision.Quantized:
    """Return q as it is in the first call of a sampler, where its rounding changes by call."""
    first = jax.tree.map(lambda a: a[0], q.calls(steps))
    return dataclasses.replace(q, site_inputs=merge(q.site_inputs, first))


def program(fn: Callable, *args) -> Callable[[], Any]:
    """Return fn(*args) as a turn: compiled, called with arrays alone, to which trees cost time."""
    leaves, tree = jax.tree.flatten(args)
    run = jax.jit(lambda *leaves: fn(*jax.tree.unflatten(tree, leaves)))
    return functools.partial(timing.finish, run, *jax.device_put(leaves))


def of_site(
    product: alone.Product, weight, versions: Mapping[str, precision.Quantized], config: Config
) -> tuple[dict, dict]:
    """Return the seconds [num_rounds, versions] of a site alone, and its row."""
    site, operands = product.site, product.operands(weight)
    ways = {name: precision.lowering_of([site], q.site_inputs)[site.name]
            for name, q in versions.items()}  # fmt: skip
    turns = {
        name: program(product.under(q.rule), operands, q.site_inputs.get(site.name))
        for name, q in versions.items()
        if name == FULL or ways[name] != "plain"
    }
    arrays, times = timed(turns, list(versions), config)
    row = {"site": site.name, "kind": str(Kind.MEASURED), "product": site.kind,
           "shapes": site.shapes, "flops": 2.0 * site.macs,
           "times": {name: {"way": ways[name], **times[name]} for name in versions}}  # fmt: skip
    return arrays, row


def of_call(versions: Mapping[str, precision.Quantized], x, t, config: Config) -> tuple[dict, dict]:
    """Return the seconds [num_rounds, versions] of a call of the network, and its row."""

    def call(q, x, t):
        return precision.quantized_call(q)(x, t)[0]

    turns = {name: program(call, precision.drop_weights(q, x, t), x, t)
             for name, q in versions.items()}  # fmt: skip
    arrays, times = timed(turns, list(versions), config)
    return arrays, {"site": CALL, "kind": str(Kind.MEASURED), "times": times}


def timed(
    turns: Mapping[str, Callable[[], Any]], names: list[str], config: Config
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Run the turns; names without one have the times of the first.

    Returns:
      seconds and cpu_seconds [num_rounds, names], and the latencies of each name.
    """
    both = timing.interleave(turns, config.num_rounds, seed=config.seed)
    places = [list(turns).index(name) if name in turns else 0 for name in names]
    wall, cpu = (seconds[:, places] for seconds in both)
    times = {name: latency(own, wall[:, 0], config.seed)
             for name, own in zip(names, wall.T, strict=True)}  # fmt: skip
    return {"seconds": wall, "cpu_seconds": cpu}, times


def latency(seconds, base, seed: int) -> dict[str, float]:
    """Return p50 and p99 in microseconds, and the ratio of the medians with its interval.

    Args:
      seconds: of the same rounds [num_rounds] as
      base: those in full precision.
      seed: of the resampling.
    """
    p50, p99 = 1e6 * np.percentile(seconds, (50, 99))
    low, high = intervals.of_seeds(_ratio, [seconds], [base], seed=seed)
    return {"p50": float(p50), "p99": float(p99), "ratio": _ratio(seconds, base),
            "low": low, "high": high}  # fmt: skip


def _ratio(seconds, base) -> float:
    return float(np.median(seconds) / np.median(base))


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the sum over sites: of medians, beside that in full precision."""
    sums = {name: sum(row["times"][name]["p50"] for row in rows) for name in rows[0]["times"]}
    return {"site": SUM, "kind": str(Kind.MEASURED), "flops": sum(row["flops"] for row in rows),
            "times": {name: {"p50": p50, "ratio": p50 / sums[FULL]}
                      for name, p50 in sums.items()}}  # fmt: skip


EXPERIMENT = command.experiment(
    Config, run, plots=plots, quick={"batch": 2, "num_steps": 2, "num_rounds": 5}
)
