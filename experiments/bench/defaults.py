"""Our default W8A8 beside qwix's, static and dynamic: error and time of sampling, in one run.

    python -m experiments.bench.defaults           10 to 20 minutes on two cores, mostly compilation

Each with the sites that it takes by itself and on the same sites: `every layer` is all products but
the network's own input and output, which no side rounds; `all but last` leaves out the last layer;
`layers` leaves out products of activations, as qwix's static form does; `layers but last` both, as
ours does by itself.
Every run is one compiled scan over the steps of DDIM, ours lowered to codes. Errors are root mean
squares of final samples from those of float32 on the same noise, with the median over samples,
since a few can carry most of it. Runs take turns in random order, and each ratio is to the float32
run of the same round; medians over rounds. Needs qwix (the extra `peers`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import peers
from experiments.harness import command, subject, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import diffusion, precision

WIDTH = "W8A8"
FLOAT = "float32"
EVERY = ("*", "!input", "!output")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    checkpoints: tuple[str, ...] = option(
        ("fashion_unet", "fashion_dit"), "Folders of checkpoints, or names of shipped ones.",
        each=subject.check_checkpoint,
    )  # fmt: skip
    batch: int = option(64, "Number of samples of a run.", least=1)
    num_steps: int = option(20, "Number of network calls of a run.", least=1)
    num_rounds: int = option(6, "Number of runs of each.", least=1)
    seed: int = command.seed("Seed of the noise.")


@dataclasses.dataclass(frozen=True)
class Way:
    """One row: whose it is, which sites it takes, how its activations are rounded."""

    whose: str
    sites: str
    activations: str

    @property
    def name(self) -> str:
        """Return what the row is called."""
        return f"{self.whose} {self.activations}, {self.sites}"


OURS = tuple(
    Way("ours", sites, activations)
    for sites, activations in (
        ("all but last", "dynamic"), ("every layer", "dynamic"), ("layers but last", "dynamic"),
        ("layers", "dynamic"), ("all but last", "static"),
    )
)  # fmt: skip
QWIX = tuple(
    Way("qwix", sites, activations)
    for sites, activations in (
        ("every layer", "dynamic"), ("all but last", "dynamic"),
        ("layers", "static"), ("layers but last", "static"),
    )
)  # fmt: skip
# What each takes by itself.
OWN = {"ours": "ours dynamic, layers but last", "qwix dynamic": "qwix dynamic, every layer",
       "qwix static": "qwix static, layers"}  # fmt: skip


def measure(checkpoint: str, config: Config) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Return times [num_rounds, runs] and errors [runs, batch] of one checkpoint, and its rows.

    Raises:
      FileNotFoundError, ValueError: see `subject.prepare`.
    """
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    target = subject.prepare(checkpoint, steps_of, ("*",), config.seed)
    x = subject.noise(target.denoiser, config.batch, config.seed)
    steps = steps_of(target.denoiser.schedule)

    def sampler(call_of: Callable, q) -> peers.Peer:
        run = jax.jit(timing.scan(call_of, steps))
        return peers.Peer(functools.partial(timing.finish, run, q, x), peers.num_bytes((q, x)))

    def low_precision(way: Way) -> peers.Peer:
        if way.whose == "qwix":
            return theirs(target, way, x, steps)
        return sampler(precision.quantized_call, ours(target, way, x))

    makers: dict[str, Callable[[], peers.Peer]] = {
        FLOAT: lambda: sampler(precision.full_call, precision.Quantized(target.denoiser, {}))
    }
    makers |= {way.name: functools.partial(low_precision, way) for way in (*OURS, *QWIX)}
    runs, missing = timing.available(makers, (ImportError, ValueError))
    samples = {name: run.turn() for name, run in runs.items()}
    turns = {name: run.turn for name, run in runs.items()}
    wall, cpu, each = timing.compare(turns, config.num_rounds, seed=config.seed)
    errors = {name: per_sample(samples[name] - samples[FLOAT]) for name in runs}
    rows = [
        {"checkpoint": checkpoint, "name": t.name,
         "milliseconds": t.milliseconds / config.num_steps, "over_float": t.ratio,
         "cpu_over_float": float(np.median(t.cpu / t.base_cpu)),
         "argument_bytes": runs[t.name].num_bytes,
         "error": float(np.sqrt(np.mean(errors[t.name] ** 2))),
         "median_error": float(np.median(errors[t.name]))}
        for t in each
    ]  # fmt: skip
    rows += [{"checkpoint": checkpoint, "name": k, "missing": v} for k, v in missing.items()]
    arrays = {"names": np.asarray(list(turns)), "seconds": wall, "cpu_seconds": cpu,
              "errors": np.stack(list(errors.values()))}  # fmt: skip
    return arrays, rows


def ours(target: subject.Subject, way: Way, x) -> precision.Quantized:
    """Return our W8A8 in words on the sites of a row, without the floats it no longer reads."""
    globs = {"all but last": (*EVERY, "!last"), "every layer": EVERY,
             "layers": (*EVERY, "!products"), "layers but last": None}[way.sites]  # fmt: skip
    q = precision.lower(target.calibration, WIDTH, sites=globs, activations=way.activations)
    return precision.drop_weights(q, x, jnp.float32(0))


def theirs(target: subject.Subject, way: Way, x, steps) -> peers.Peer:
    """Return qwix's W8A8 on the sites of a row."""
    last = [s.name for s in target.sites if s.weight is not None][-1].rsplit("/", 1)[0]
    is_static = way.activations == "static"
    return peers.qwix(target.denoiser, x, steps, last if way.sites.endswith("last") else None,
                      is_static=is_static)  # fmt: skip


def per_sample(errors) -> np.ndarray:
    """Return the root mean square of each sample [batch]."""
    return np.sqrt(np.mean(np.asarray(errors, np.float64) ** 2, axis=tuple(range(1, errors.ndim))))


def run(config: Config, *, progress: bool = False) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Return arrays by "<checkpoint>/<name>", and a row for each run, those missing too.

    Raises:
      FileNotFoundError, ValueError: see `subject.prepare`.
    """
    parts = {checkpoint: measure(checkpoint, config) for checkpoint in config.checkpoints}
    return command.by_part(parts), [row for _, rows in parts.values() for row in rows]


def beside(rows: list[dict[str, Any]]) -> list[tuple[dict, dict]]:
    """Return pairs (ours, qwix's) of rows: what each takes by itself, and the same sites."""
    by_name = {(row["checkpoint"], row["name"]): row for row in rows}
    pairs = []
    for checkpoint in dict.fromkeys(row["checkpoint"] for row in rows):
        for way in QWIX:
            same = f"ours dynamic, {way.sites}"
            is_own = way.name in OWN.values()
            for mine in (OWN["ours"], same) if is_own else (same,):
                pairs.append((by_name[checkpoint, mine], by_name[checkpoint, way.name]))
    return pairs


COLUMNS = (
    *peers.COLUMNS,
    ("median\nerror", tables.numbers("median_error")),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=functools.partial(peers.by_checkpoint, columns=COLUMNS),
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
