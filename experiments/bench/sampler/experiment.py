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
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.sampler import peers
from experiments.bench.sampler.orders import compared, reordered, rms
from experiments.harness import old_command as command
from experiments.harness import subject, timing
from qdiffjax import diffusion, precision
from qdiffjax.kernels import backends
from qdiffjax.precision import calibration

WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W8": (8, None)}
FLOAT = "float32"
ORDER = "order"  # of sums: such runs are compared, not timed
FLIPS = "W8A8"  # whose first call is compared too


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    checkpoints: tuple[str, ...] = ("fashion_unet", "fashion_dit")
    batch: int = 64
    num_steps: int = 20
    num_rounds: int = 8
    num_orders: int = 4
    seed: int = 0


HELP = {
    "checkpoints": "folders or shipped names", "batch": "samples of a run",
    "num_steps": "network calls of a run", "num_rounds": "runs of each",
    "num_orders": "in which the simulation takes its sums, the usual one too",
    "seed": "of the noise",
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if min(config.batch, config.num_steps, config.num_rounds) < 1:
        raise ValueError("batch, steps and rounds must be at least 1.")
    if config.num_orders < 2:
        raise ValueError(f"num-orders: got {config.num_orders}, expected at least 2 to compare.")


def lowered(target: subject.Subject, weight_bits, activation_bits, x) -> precision.Quantized:
    """The subject at these widths in real low precision, without the floats it no longer reads."""
    recipe = precision.uniform(
        target.sites, weight_bits=weight_bits, activation_bits=activation_bits, globs=target.globs
    )
    codes = precision.prepare_codes(target.weights, target.sites, recipe)
    eps_fn, params = target.denoiser.eps_fn, target.denoiser.params
    q = calibration.lower_denoiser(eps_fn, params, target.sites, recipe, codes, target.ranges)
    return precision.drop_weights(q, x, jnp.float32(0))


def runs(
    target: subject.Subject, x, steps, num_orders: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compiled samplers by name, and the first network call of each."""
    denoiser = target.denoiser

    def scan(call_of):
        return jax.jit(
            lambda q, x: diffusion.sample(call_of(q), x, steps, keep_trajectory=False).x_0
        )

    def first(call_of):
        return jax.jit(lambda q, x: call_of(q)(x, jnp.asarray(steps.t[0], jnp.float32), None)[0])

    of_params = lambda p: diffusion.bind(denoiser.eps_fn, p)  # noqa: E731
    cases = {FLOAT: (of_params, denoiser.params)}
    for name, bits in WIDTHS.items():
        q = target.quantized(*bits)
        cases[f"simulated {name}"] = precision.quantized_call, q
        for order in range(1, num_orders):
            rule = reordered(order)
            cases[f"{ORDER} {order} {name}"] = (
                precision.quantized_call, dataclasses.replace(q, rule=rule)
            )  # fmt: skip
        cases[f"lowered {name}"] = precision.quantized_call, lowered(target, *bits, x)
    compiled, calls = {}, {}
    for name, (call_of, q) in cases.items():
        compiled[name] = scan(call_of), q
        if name.endswith(FLIPS):
            calls[name] = first(call_of)(q, x)
    return compiled, calls


def measure(checkpoint: str, config: Config) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Times [num_rounds, runs] of one checkpoint, and its rows."""
    target = subject.prepare(
        checkpoint, lambda s: diffusion.ddim(s, config.num_steps), subject.ALL_BUT_LAST,
        config.seed,
    )  # fmt: skip
    x = subject.noise(target.denoiser, config.batch, config.seed)
    steps = diffusion.ddim(target.denoiser.schedule, config.num_steps)
    compiled, calls = runs(target, x, steps, config.num_orders)
    samples = {name: run(q, x) for name, (run, q) in compiled.items()}
    turns = {
        name: lambda run=run, q=q: jax.block_until_ready(run(q, x))
        for name, (run, q) in compiled.items()
        if not name.startswith(ORDER)
    }
    sizes = {name: peers.num_bytes((compiled[name][1], x)) for name in turns}
    missing = []
    for name, make in _peers(target, x, steps):
        try:
            peer = make()
        except (ImportError, ValueError, flax.errors.FlaxError) as error:
            reason = str(error).splitlines()[0]
            missing.append({"checkpoint": checkpoint, "name": name, "missing": reason})
            continue
        turns[name] = peer.turn
        sizes[name] = peer.arguments
        if peer.sample is not None:
            samples[name] = peer.sample()
    wall, cpu = timing.interleave(turns, config.num_rounds, seed=config.seed)
    rows = [
        {"checkpoint": checkpoint, "name": name,
         "milliseconds": 1e3 * float(np.median(wall[:, i])) / config.num_steps,
         "over_float": float(np.median(wall[:, i] / wall[:, 0])),
         "cpu_over_float": float(np.median(cpu[:, i] / cpu[:, 0])),
         "argument_bytes": sizes[name], **distances(name, samples, calls)}
        for i, name in enumerate(turns)
    ]  # fmt: skip
    return {"names": np.asarray(list(turns)), "seconds": wall, "cpu_seconds": cpu}, rows + missing


def _peers(target: subject.Subject, x, steps):
    denoiser = target.denoiser
    last = [s.name for s in target.sites if s.weight is not None][-1].rsplit("/", 1)[0]
    return (
        ("qwix W8A8, static",
         lambda: peers.qwix(denoiser, x, steps, last, is_static=True)),
        ("qwix W8A8, dynamic",
         lambda: peers.qwix(denoiser, x, steps, last, is_static=False)),
        ("torch float32", lambda: peers.torch(denoiser, x, steps.t.shape[0])),
    )  # fmt: skip


def distances(name: str, samples, calls) -> dict[str, Any]:
    """Root mean squares: error against float32, and of lowered runs, against the simulation."""
    if name not in samples or name == FLOAT:
        return {}
    found: dict[str, Any] = {"error": rms(samples[name] - samples[FLOAT])}
    kind, _, width = name.partition(" ")
    if kind == "lowered":
        found["path"] = backends.default().name
        for key, values in (("", samples), ("flips_", calls)):
            if name not in values:
                continue
            orders = [values[f"simulated {width}"]]
            orders += [v for n, v in values.items() if n.startswith(ORDER) and n.endswith(width)]
            found |= {f"{key}{k}": v for k, v in compared(values[name], orders).items()}
    return found


def run(config: Config, *, progress: bool = False) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Return arrays by "<checkpoint>/<name>", and a row for each run, those missing too.

    Raises:
      FileNotFoundError, ValueError: see `subject.prepare`.
    """
    arrays: dict[str, np.ndarray] = {}
    rows: list[dict] = []
    for checkpoint in config.checkpoints:
        found, more = measure(checkpoint, config)
        arrays |= {f"{checkpoint}/{key}": value for key, value in found.items()}
        rows += more
    return arrays, rows


def show(row) -> str:
    """One line of the table."""
    if "missing" in row:
        return f"{row['checkpoint']:14s} {row['name']:20s} not measured: {row['missing']}"
    size = row["argument_bytes"]
    line = (
        f"{row['checkpoint']:14s} {row['name']:20s} {row['milliseconds']:8.2f} ms a call "
        f"{row['over_float']:6.2f} x float32 (CPU {row['cpu_over_float']:.2f})  "
        f"{'' if size is None else f'{size / 1e6:.2f} MB':>8s}"
    )
    if "error" in row:
        line += f"  error {row['error']:.4f}"
    if "from_simulation" in row:
        line += (
            f"  from simulation {row['from_simulation']:.4f}, two orders {row['two_orders']:.4f} "
            f"({row['two_orders_range'][0]:.4f} to {row['two_orders_range'][1]:.4f})"
        )
    return line


def print_rows(rows) -> None:
    """Print a line a run."""
    print("\n".join(show(row) for row in rows))


EXPERIMENT = command.Experiment(
    "bench_sampler", __doc__ or "", Config, HELP, check, run, print_rows=print_rows,
    resumes=False,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)
