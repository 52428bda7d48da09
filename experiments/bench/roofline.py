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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, networks
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import hardware
from qdiffjax.sites import list_sites

# Operands, sums, precision.
FORMATS: dict[str, tuple[Any, Any, Any]] = {
    "f32": (jnp.float32, jnp.float32, jax.lax.Precision.HIGHEST),
    "bf16": (jnp.bfloat16, jnp.float32, None),
    "int8": (jnp.int8, jnp.int32, None),
    "f8": (jnp.float8_e4m3fn, jnp.float32, None),
}
CALLS = ("f32", "bf16")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    network: str = option("dit_s_2", "A DiT.", choices=networks.SIZES)
    batch: int = option(4, "Number of samples of a call.", least=1)
    side: int = option(1024, "Side of the square products.", least=1)
    megabytes: int = option(
        4, "Size of the array that is passed over; 4 stay in the cache of a CPU.", least=1
    )
    num_rounds: int = option(10, "Number of times that everything is measured.", least=1)
    seconds: float = option(2.0, "Seconds to run while power is read.", above=0)


def peaks(side: int, num_rounds: int) -> list[dict[str, Any]]:
    """Return the most operations a second of a product [side, side] in each format."""
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
    """Return the bytes a second of one pass over an array: read once, written once."""
    a = jnp.ones(megabytes * 2**18, jnp.float32)
    seconds = hardware.measure(jax.jit(jnp.negative), a, num_rounds=num_rounds).seconds
    return {"part": "bandwidth", "kind": "measured", "rate": 2 * a.nbytes / float(seconds.min())}


def call_row(config: Config, name: str, machines: dict[str, hardware.Chip]) -> dict[str, Any]:
    """Measure and predict time, memory and energy of a call in the format `name`."""
    network = networks.published(config.network, FORMATS[name][0])
    x = jax.random.normal(jax.random.key(2), (config.batch, *network.shape), jnp.float32)
    args = networks.random_params(network), x, jnp.float32(500)
    counts = hardware.count(list_sites(network.eps_fn, *args))
    full = 8 * jnp.dtype(FORMATS[name][0]).itemsize
    w = hardware.uniform(full, full, full=full)
    with jax.default_matmul_precision("highest"):  # no shortcut of float32 through fewer bits
        compiled = jax.jit(network.eps_fn).lower(*args).compile()
    timed = hardware.measure(compiled, *args, num_rounds=config.num_rounds)
    best = float(timed.seconds.min())
    row = {
        "part": "call", "kind": "measured", "format": name, "seconds": best,
        "median": timed.median, "low": timed.low, "high": timed.high,
        "flops_per_second": 2 * float(counts.macs.sum()) / best,
        "roofline": {key: float(hardware.predict_times(counts, w, chip).total)
                     for key, chip in machines.items()},
        "compiled_peak": hardware.read_cost(compiled).peak, "held_peak": timed.peak_bytes,
        "predicted_joules": float(hardware.predict_energy(counts, w, hardware.HBM).total),
    }  # fmt: skip
    try:
        energy = hardware.measured_energy(compiled, *args, seconds=config.seconds)
        watts = energy.joules / energy.seconds
        return row | {"joules": energy.per_call, "watts": watts, "energy_source": energy.source}
    except RuntimeError as error:
        return row | {"joules": None, "energy_source": str(error)[:200]}


def run(config: Config, *, progress: bool = False):
    """Return no arrays, and the rows: peaks, bandwidth, and a call in each dtype."""
    rows = [*peaks(config.side, config.num_rounds), bandwidth(config.megabytes, config.num_rounds)]
    rates = {r["format"]: r["rate"] for r in rows if r["part"] == "peak" and "rate" in r}
    machines = {"here": hardware.Chip("here", rates, rows[-1]["rate"], np.inf)}
    known = hardware.find_chip(jax.devices()[0].device_kind)
    if known is not None:
        machines[known.name] = known
        vendor = {"memory": known.bandwidth, **known.rates}
        rows = [row | {"vendor": vendor.get(row.get("format", "memory"))} for row in rows]
    return {}, rows + [call_row(config, name, machines) for name in CALLS]


def rooflines(row) -> str:
    """Return the milliseconds of a call by the roofline of each machine."""
    return ", ".join(f"{tables.number(1e3 * s)} ({name})" for name, s in row["roofline"].items())


PEAKS = (
    ("", lambda r: r.get("format", "memory")), ("G a second", tables.numbers("rate", unit=1e9)),
    ("the vendor says", tables.numbers("vendor", unit=1e9)),
)  # fmt: skip
COLUMNS = (
    ("call in", lambda r: r["format"]), ("ms\nat best", tables.numbers("seconds", unit=1e-3)),
    ("ms by the roofline of", rooflines),
    ("MB\nplanned", tables.numbers("compiled_peak", unit=1e6)),
    ("MB\nheld", tables.numbers("held_peak", unit=1e6)), ("J", tables.numbers("joules")),
    ("W", tables.numbers("watts")),
    ("J of products,\npredicted", tables.numbers("predicted_joules")),
)  # fmt: skip


def table(rows) -> list:
    """Return the tables on the screen: peaks of the machine, and calls."""
    calls = [row for row in rows if row["part"] == "call"]
    others = [row for row in rows if row["part"] != "call"]
    return [tables.columns(others, PEAKS), *tables.reasons(others, "missing", "format"),
            tables.columns(calls, COLUMNS)]  # fmt: skip


EXPERIMENT = command.experiment(Config, run, table=table)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
