"""Sampling end to end in real low precision: time, memory, and how far from the simulation.

    python -m experiments.bench.sampler            5 to 10 minutes on two cores, mostly compilation

Every run is one compiled scan over the steps of DDIM, quantization included. They take turns in
random order, and each ratio is to the float32 run of the same round; medians over rounds. W8A8,
W4A8: weights per channel, activations per tensor, static, all but the last layer; W8: weights
alone. `lowered` multiplies codes, `simulated` rounds and multiplies floats. qwix and torch are
optional (the extra `peers`). On every platform the kernels are those that it gets by default.

The lowered run rounds to the simulation's codes and differs by the order of float sums, which
now and then flips a rounding that the sampler then carries along. How much that is, is measured
as the simulation against itself with its sums taken in other orders: `two_orders` is the median
over pairs of orders, with the smallest and the largest, `from_simulation` the median over orders.
All are root mean squares of final samples, as is the error of quantization itself; `flips` are the
same after one network call of W8A8. Bytes are those of the arrays that a run is given.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import peers
from experiments.harness import command, subject, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import diffusion, precision
from qdiffjax.kernels import backends
from qdiffjax.sites.products import Dot

WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W8": (8, None)}
FLOAT = "float32"
ORDER = "order"  # of sums: such runs are compared, not timed
FLIPS = "W8A8"  # whose first call is compared too
ERRORS = ImportError, ValueError, flax.errors.FlaxError  # of a system that is not there


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    checkpoints: tuple[str, ...] = option(
        ("fashion_unet", "fashion_dit"), "Folders of checkpoints, or names of shipped ones.",
        each=subject.check_checkpoint,
    )  # fmt: skip
    batch: int = option(64, "Number of samples of a run.", least=1)
    num_steps: int = option(20, "Number of network calls of a run.", least=1)
    num_rounds: int = option(8, "Number of runs of each.", least=1)
    num_orders: int = option(
        4, "Number of orders in which the simulation takes its sums, the usual one too.", least=2
    )
    seed: int = command.seed("Seed of the noise.")


def networks(target: subject.Subject, x, num_orders: int) -> dict[str, precision.Quantized]:
    """Return what is sampled from, by name."""
    denoiser = target.denoiser
    versions = {FLOAT: precision.Quantized(denoiser, {})}
    for width, bits in WIDTHS.items():
        q = target.quantized(*bits)
        versions[f"simulated {width}"] = q
        for order in range(1, num_orders):
            versions[f"{ORDER} {order} {width}"] = dataclasses.replace(q, rule=reordered(order))
        lowered = precision.lower(target.calibration, target.recipe(*bits))
        # Without the floats that it no longer reads.
        versions[f"lowered {width}"] = precision.drop_weights(lowered, x, jnp.float32(0))
    return versions


def measure(checkpoint: str, config: Config) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Return the times [num_rounds, runs] of one checkpoint, and its rows."""
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    target = subject.prepare(checkpoint, steps_of, subject.ALL_BUT_LAST, config.seed)
    x = subject.noise(target.denoiser, config.batch, config.seed)
    steps = steps_of(target.denoiser.schedule)

    def ours(name: str, q: precision.Quantized) -> peers.Peer:
        call_of = precision.full_call if name == FLOAT else precision.quantized_call
        sampler = jax.jit(timing.scan(call_of, steps))
        turn = functools.partial(timing.finish, sampler, q, x)
        return peers.Peer(turn, peers.num_bytes((q, x)))

    @jax.jit
    def first(q, x):
        t = jnp.asarray(steps.t[0], jnp.float32)
        return precision.quantized_call(q)(x, t)[0]

    versions = networks(target, x, config.num_orders)
    others, missing = timing.available(systems(target, x, steps), ERRORS)
    runs = {name: ours(name, q) for name, q in versions.items()} | others
    samples = {name: run.turn() for name, run in runs.items()}
    calls = {name: first(q, x) for name, q in versions.items() if name.endswith(FLIPS)}
    turns = {name: run.turn for name, run in runs.items() if not name.startswith(ORDER)}
    wall, cpu, each = timing.compare(turns, config.num_rounds, seed=config.seed)
    rows = [
        {"checkpoint": checkpoint, "name": t.name,
         "milliseconds": t.milliseconds / config.num_steps, "over_float": t.ratio,
         "cpu_over_float": np.median(t.cpu / t.base_cpu),
         "argument_bytes": runs[t.name].num_bytes, **distances(t.name, samples, calls)}
        for t in each
    ]  # fmt: skip
    rows += [{"checkpoint": checkpoint, "name": k, "missing": v} for k, v in missing.items()]
    return {"names": np.asarray(list(turns)), "seconds": wall, "cpu_seconds": cpu}, rows


def systems(target: subject.Subject, x, steps) -> dict[str, Callable[[], peers.Peer]]:
    """Return makers of the samplers of other systems."""
    denoiser = target.denoiser
    last = [s.name for s in target.sites if s.weight is not None][-1].rsplit("/", 1)[0]
    qwix = functools.partial(peers.qwix, denoiser, x, steps, last)
    return {
        "qwix W8A8, static": functools.partial(qwix, is_static=True),
        "qwix W8A8, dynamic": functools.partial(qwix, is_static=False),
        "torch float32": lambda: peers.torch(denoiser, x, steps.t.shape[0]),
    }


def distances(name: str, samples, calls) -> dict[str, Any]:
    """Return root mean squares: of the error, and of a lowered run from the simulation."""
    if name == FLOAT or samples[name] is None:
        return {}
    row: dict[str, Any] = {"error": rms(samples[name] - samples[FLOAT])}
    kind, _, width = name.partition(" ")
    if kind == "lowered":
        row["path"] = backends.default().name
        row |= beside_simulation(width, samples)
        if width == FLIPS:
            row |= {f"flips_{key}": value for key, value in beside_simulation(width, calls).items()}
    return row


def beside_simulation(width: str, results: dict[str, Any]) -> dict[str, Any]:
    """Return the distances of the lowered run at this width from its simulations."""
    orders = [v for k, v in results.items() if k.startswith(ORDER) and k.endswith(width)]
    return compared(results[f"lowered {width}"], [results[f"simulated {width}"], *orders])


def compared(x, orders: list) -> dict[str, Any]:
    """Return distances of samples from simulations in several orders, and of those."""
    pairs = [rms(a - b) for a, b in itertools.combinations(orders, 2)]
    return {
        "from_simulation": np.median([rms(x - v) for v in orders]),
        "two_orders": np.median(pairs),
        "two_orders_range": (min(pairs), max(pairs)),
    }


def rms(x) -> float:
    """Return the root mean square of all elements."""
    return float(jnp.sqrt(jnp.mean(x**2)))


def reordered(order: int):
    """Return the rule `quantize_site` with every sum in a random order of its own."""

    def rule(site, op, operands, inputs):
        if site.product is None:
            return precision.quantize_site(site, op, operands, inputs)

        def moved(*values):
            pairs = zip(values, _summed(site), strict=True)
            return op(*(_permuted(v, axes, order) for v, axes in pairs))

        return precision.quantize_site(site, moved, operands, inputs)

    return rule


def _permuted(x, axes: tuple[int, ...], seed: int):
    for axis in axes:
        n = x.shape[axis]
        x = jnp.take(x, np.random.default_rng((seed, n)).permutation(n), axis)
    return x


def _summed(site) -> tuple[tuple[int, ...], ...]:
    """Return axes of both operands whose order leaves the product: summed axes, channels."""
    product = site.product
    if isinstance(product, Dot):
        return product.contract
    return ((), ()) if product.feature_groups > 1 else ((product.lhs[1],), (product.rhs[1],))


def run(config: Config, *, progress: bool = False) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Return arrays by "<checkpoint>/<name>", and a row for each run, those missing too.

    Raises:
      FileNotFoundError, ValueError: see `subject.prepare`.
    """
    parts = {checkpoint: measure(checkpoint, config) for checkpoint in config.checkpoints}
    return command.by_part(parts), [row for _, rows in parts.values() for row in rows]


COLUMNS = (
    *peers.COLUMNS,
    ("from\nsimulation", tables.numbers("from_simulation")),
    ("two\norders", tables.numbers("two_orders")),
    ("least, most", lambda r: ", ".join(map(tables.number, r.get("two_orders_range", ())))),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=functools.partial(peers.by_checkpoint, columns=COLUMNS),
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
