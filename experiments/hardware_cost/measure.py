"""Parts of `experiments.hardware_cost`: networks, precisions, their costs, and a measured CPU."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import alone, timing
from experiments.harness.networks import Network
from qdiffjax import hardware, precision
from qdiffjax.labels import Kind
from qdiffjax.sites import list_sites

Call = tuple[Callable[..., Any], tuple]  # a compiled function and its arguments


class Precision(NamedTuple):
    """Bits of weights and activations, None for `full`; what is not quantized has `full` bits."""

    weight: int | None
    activation: int | None
    full: int
    family: tuple[str, ...] = hardware.INTEGER


PRECISIONS = {
    "float32": Precision(None, None, 32),
    "bf16": Precision(None, None, 16),
    "W8A8": Precision(8, 8, 16),
    "W4A8": Precision(4, 8, 16),
    "W4A16": Precision(4, None, 16),
    "fp8": Precision(8, 8, 16, hardware.FLOAT),
}


def recipe(sites, widths: Precision) -> precision.Recipe:
    """Return these widths at all sites but the last layer, the default of every experiment."""
    return precision.uniform(
        sites, weight_bits=widths.weight, activation_bits=widths.activation,
        globs=("*", "!last"),
    )  # fmt: skip


def costs(name: str, network: Network, batch: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return costs of a call, by precision P, chip C and site S.

    Arrays: sites [S], macs [S]; weight_bytes, traffic, bops, joules [P, S]; seconds [P, C, S].
    A row for every precision with the sums.
    """
    sites = list_sites(network.eps_fn, *network.arguments(batch))
    counts = hardware.count(sites)
    other = hardware.other_elements(network.params, counts)
    by_precision, rows = [], []
    for label, chosen in PRECISIONS.items():
        w = hardware.widths(counts, recipe(sites, chosen), full=chosen.full)
        by_chip = {chip.name: hardware.predict_times(counts, w, chip, family=chosen.family)
                   for chip in hardware.CHIPS}  # fmt: skip
        joules = hardware.predict_energy(counts, w, hardware.HBM, family=chosen.family)
        by_site = {
            "weight_bytes": hardware.weight_bytes(counts, w),
            "traffic": hardware.traffic(counts, w), "bops": hardware.bops(counts, w),
            "joules": joules.compute + joules.memory,
            "seconds": [r.seconds for r in by_chip.values()],
        }  # fmt: skip
        by_precision.append(by_site)
        rows.append({
            "part": "costs", "network": name, "kind": str(Kind.PREDICTED),
            "batch": batch, "precision": label, "gmacs": counts.macs.sum() / 1e9,
            "parameters": int(counts.stored.sum()) + other,
            "model_bytes": int(hardware.model_bytes(counts, w, other)),
            "working_set": int(hardware.working_set(counts, w)),
            "traffic": int(by_site["traffic"].sum()), "bops": float(by_site["bops"].sum()),
            "joules_compute": float(joules.compute.sum()),
            "joules_memory": float(joules.memory.sum()),
            "seconds": {chip: float(r.total) for chip, r in by_chip.items()},
            "memory_bound": {chip: float(r.seconds[r.is_memory_bound].sum() / r.total)
                             for chip, r in by_chip.items()},
        })  # fmt: skip
    arrays = {key: np.array([by_site[key] for by_site in by_precision]) for key in by_precision[0]}
    return arrays | {"sites": np.array(counts.names), "macs": counts.macs}, rows


def compiled(name: str, network: Network) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return, beside our counts, what XLA says of one float32 call on one sample."""
    args = network.arguments(1)
    counts = hardware.count(list_sites(network.eps_fn, *args))
    cost = hardware.compiled_cost(network.eps_fn, *args)
    return {}, [{
        "part": "compiled", "network": name, "kind": str(Kind.COMPILED),
        "xla_flops": cost.flops, "site_flops": float(2 * counts.macs.sum()),
        "xla_bytes": cost.accessed,
        "site_bytes": float(hardware.traffic(counts, hardware.uniform(32, 32)).sum()),
        "temporaries": cost.temporaries,
    }]  # fmt: skip


def calibrations(working_set: int, side: int = 1024) -> dict[str, Call]:
    """Return what tells the machine's peaks: compiled functions with their arguments.

    A float32 product of matrices [side, side], and one pass over `working_set` bytes, half read
    and half written: of the cache, where they fit in one.
    """
    a = jnp.ones((side, side), jnp.float32)
    half = jnp.ones(max(1, working_set // 8), jnp.float32)
    return {"product": (jax.jit(jnp.matmul), (a, a)), "pass": (jax.jit(jnp.negative), (half,))}


def machine(calls: dict[str, Call], seconds: dict[str, float]) -> hardware.Chip:
    """Return the machine that ran the `calibrations` in these seconds as a chip."""
    side, half = (calls[name][1][0] for name in ("product", "pass"))
    rates = {"f32": 2 * side.shape[0] ** 3 / seconds["product"]}
    return hardware.Chip("here", rates, 2 * half.nbytes / seconds["pass"], math.inf)


def measured(name: str, network: Network, batch: int, num_rounds: int) -> tuple[dict, list]:
    """Time a float32 call and each of its products alone, beside the roofline of this machine.

    All take turns with what calibrates the machine. The best of many rounds is what it can do,
    whatever else runs: a roofline is a bound.
    Arrays: seconds (best), roofline, intensity [S]; call [num_rounds].
    """
    counts = hardware.count(list_sites(network.eps_fn, *network.arguments(batch)))
    full = hardware.uniform(32, 32)
    calls = calibrations(int(hardware.working_set(counts, full)))
    x = jax.random.normal(jax.random.key(0), (batch, *network.shape), jnp.float32)
    fn = jax.jit(functools.partial(network.eps_fn, network.params))
    calls["call"] = fn, (x, jnp.float32(500))
    products = alone.products(network.eps_fn, *network.arguments(batch))
    calls |= {site: (jax.jit(products[site].op), products[site].operands())
              for site in counts.names}  # fmt: skip
    turns = {name: functools.partial(timing.finish, fn, *args)
             for name, (fn, args) in calls.items()}  # fmt: skip
    wall, _ = timing.interleave(turns, num_rounds)
    best = dict(zip(calls, wall.min(axis=0), strict=True))
    chip, call = machine(calls, best), wall[:, list(calls).index("call")]
    roofline = hardware.predict_times(counts, full, chip)
    seconds = np.array([best[site] for site in counts.names])
    low, high, coverage = hardware.median_interval(call)
    row = {
        "part": "measured", "network": name, "kind": str(Kind.MEASURED),
        "batch": batch, "device": str(jax.devices()[0].device_kind), "rate": chip.rates["f32"],
        "bandwidth": chip.bandwidth, "roofline": float(roofline.total),
        "call": float(np.median(call)), "call_best": float(call.min()), "call_low": low,
        "call_high": high, "coverage": coverage, "products_alone": float(seconds.sum()),
    }  # fmt: skip
    arrays = {
        "seconds": seconds, "roofline": roofline.seconds, "intensity": roofline.intensity,
        "macs": counts.macs, "sites": np.array(counts.names), "call": call,
    }  # fmt: skip
    return arrays, [row]
