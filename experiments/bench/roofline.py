"""Rooflines against an accelerator: its real peaks, and a transformer's call under them.

    python -m experiments.bench.roofline                                      a CPU, half a minute
    python -m experiments.bench.roofline --network dit_xl_2 --batch 32 --side 8192 --megabytes 4096

Square products in every format give the peaks that XLA reaches, one pass over an array the
bandwidth. A call of a DiT with random weights, in float32 and bfloat16, is then timed beside two
predictions: the roofline of these peaks, and that of the vendor's numbers where the device is a
known chip. Memory is what the compiler planned and, where it is reported, what the device held;
energy is measured where nvidia-smi tells the power.
"""

import dataclasses
import functools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import networks, tables
from experiments.harness import old_command as command
from qdiffjax import hardware
from qdiffjax.sites import list_sites

HIGHEST = jax.lax.Precision.HIGHEST
# Operands, sums, precision.
FORMATS: dict[str, tuple[Any, Any, Any]] = {
    "f32": (jnp.float32, jnp.float32, HIGHEST), "bf16": (jnp.bfloat16, jnp.float32, None),
    "int8": (jnp.int8, jnp.int32, None), "f8": (jnp.float8_e4m3fn, jnp.float32, None),
}  # fmt: skip
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    network: str = "dit_s_2"
    batch: int = 4
    side: int = 1024
    megabytes: int = 4
    num_rounds: int = 10
    seconds: float = 2.0


HELP = {
    "network": f"one of {', '.join(networks.SIZES)}",
    "batch": "samples of a call",
    "side": "of the square products",
    "megabytes": "of the array that is passed over; 4 stay in the cache of a CPU",
    "num_rounds": "times that everything is measured",
    "seconds": "to run while power is read",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if config.network not in networks.SIZES:
        raise ValueError(f"got network {config.network!r}, expected one of {list(networks.SIZES)}.")
    if min(config.batch, config.side, config.megabytes, config.num_rounds) < 1:
        raise ValueError(f"expected numbers of at least 1, got {config}.")


def peaks(side: int, num_rounds: int) -> list[dict[str, Any]]:
    """Operations a second of a product [side, side] in each format, best of the rounds."""
    rows = []
    for name, (dtype, sums, precision) in FORMATS.items():
        # Not ones: a chip that toggles few bits runs at a higher clock.
        a = (16 * jax.random.normal(jax.random.key(0), (side, side), jnp.float32)).astype(dtype)
        dot = functools.partial(jnp.matmul, precision=precision, preferred_element_type=sums)
        row: dict[str, Any] = {"part": "peak", "kind": "measured", "format": name}
        try:
            seconds = hardware.measure(jax.jit(dot), a, a, num_rounds=num_rounds).seconds
            rows.append(row | {"rate": 2 * side**3 / float(seconds.min())})
        except (jax.errors.JaxRuntimeError, TypeError) as error:
            rows.append(row | {"missing": str(error).splitlines()[0][:200]})
    return rows


def bandwidth(megabytes: int, num_rounds: int) -> dict[str, Any]:
    """Bytes a second of one pass over an array: read once, written once."""
    a = jnp.ones(megabytes * 2**18, jnp.float32)
    seconds = hardware.measure(jax.jit(jnp.negative), a, num_rounds=num_rounds).seconds
    return {"part": "bandwidth", "kind": "measured", "rate": 2 * a.nbytes / float(seconds.min())}


def random_network(name: str, dtype):
    """(eps_fn, params) of a DiT in `dtype`, weights normal and small."""
    net = networks.SIZES[name](num_classes=networks.NUM_CLASSES, learn_sigma=True, dtype=dtype)
    arrays = jnp.zeros((1, *networks.LATENT), jnp.float32), jnp.zeros((), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *arrays)
    leaves, tree = jax.tree.flatten(shapes)
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])

    @jax.jit
    def draw(key):  # all at once: one compilation
        parts_of = jnp.split(jax.random.normal(key, (int(ends[-1]),), dtype), ends[:-1])
        return [0.02 * a.reshape(leaf.shape) for a, leaf in zip(parts_of, leaves, strict=True)]

    return net.apply, jax.tree.unflatten(tree, draw(jax.random.key(1)))


def call_row(config: Config, name: str, machines: dict[str, hardware.Chip]) -> dict[str, Any]:
    """A call in the format `name`: time, memory and energy, measured and predicted."""
    eps_fn, params = random_network(config.network, DTYPES[name])
    x = jax.random.normal(jax.random.key(2), (config.batch, *networks.LATENT), jnp.float32)
    args = params, x, jnp.float32(500)
    counts = hardware.count(list_sites(eps_fn, *args))
    full = 8 * jnp.dtype(DTYPES[name]).itemsize
    w = hardware.uniform(full, full, full=full)
    with jax.default_matmul_precision("highest"):  # no shortcut of float32 through fewer bits
        compiled = jax.jit(eps_fn).lower(*args).compile()
    found = hardware.measure(compiled, *args, num_rounds=config.num_rounds)
    row = {
        "part": "call", "kind": "measured", "format": name, "seconds": float(found.seconds.min()),
        "median": found.median, "low": found.low, "high": found.high,
        "flops_per_second": 2 * float(counts.macs.sum()) / float(found.seconds.min()),
        "roofline": {key: float(hardware.roofline(counts, w, chip).total)
                     for key, chip in machines.items()},
        "compiled_peak": hardware.read_cost(compiled).peak, "held_peak": found.peak_bytes,
        "predicted_joules": float(hardware.energy(counts, w, hardware.HBM).total),
    }  # fmt: skip
    try:
        energy = hardware.measured_energy(compiled, *args, seconds=config.seconds)
        watts = energy.joules / energy.seconds
        return row | {"joules": energy.per_call, "watts": watts, "energy_source": energy.source}
    except RuntimeError as error:
        return row | {"joules": None, "energy_source": str(error)[:200]}


def run(config: Config, *, progress: bool = False):
    """Return no arrays, and the rows: peaks, bandwidth, and a call in each dtype."""
    check(config)
    rows = [*peaks(config.side, config.num_rounds), bandwidth(config.megabytes, config.num_rounds)]
    rates = {r["format"]: r["rate"] for r in rows if r["part"] == "peak" and "rate" in r}
    machines = {"here": hardware.Chip("here", rates, rows[-1]["rate"], np.inf)}
    known = hardware.find_chip(jax.devices()[0].device_kind)
    if known is not None:
        machines[known.name] = known
        rows = [_beside(row, known) for row in rows]
    return {}, rows + [call_row(config, name, machines) for name in DTYPES]


def _beside(row, chip: hardware.Chip) -> dict[str, Any]:
    """The row with the vendor's number."""
    vendor = chip.rates.get(row["format"]) if row["part"] == "peak" else chip.bandwidth
    return row | {"vendor": vendor}


def show(row) -> str:
    """One line of the table."""
    number = tables.number
    if row["part"] != "call":
        what = row.get("format", "memory")
        if "missing" in row:
            return f"{what}: not run: {row['missing']}"
        vendor = f", the vendor says {number(row['vendor'] / 1e9)}" if row.get("vendor") else ""
        return f"{what}: {number(row['rate'] / 1e9)} G a second{vendor}"
    roofs = ", ".join(f"{k} {1e3 * s:.3g} ms" for k, s in row["roofline"].items())
    held = "-" if row["held_peak"] is None else f"{row['held_peak'] / 1e6:.0f}"
    energy = "" if row["joules"] is None else (
        f"; {row['joules']:.3g} J at {row['watts']:.0f} W, products predicted "
        f"{row['predicted_joules']:.3g} J")  # fmt: skip
    return (f"call in {row['format']}: {1e3 * row['seconds']:.3g} ms at best, roofline {roofs}; "
            f"MB planned {row['compiled_peak'] / 1e6:.0f}, held {held}{energy}")  # fmt: skip


def print_rows(rows) -> None:
    """Print a line a row."""
    print("\n".join(show(row) for row in rows))


EXPERIMENT = command.Experiment(
    "bench_roofline", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
