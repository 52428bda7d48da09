"""DiT-XL/2 from end to end in low precision: time of a sampler's step, and memory.

    python -m experiments.bench.dit_xl             minutes, on a GPU

Every way is one compiled scan over steps of DDIM on latents of 32 x 32 x 4 (256 tokens each), with
random weights in bfloat16 and residuals of bfloat16: neither time nor memory asks what the weights
are. They take turns in random order; ratios are to bfloat16 in the same round, medians over
rounds. Codes replace the weights of all dense layers but the last; those that see fewer than 128
tokens (the condition) keep real activations. Products of activations, in attention, stay
bfloat16. Static scales are one constant per layer, made up: `distance`, of the samples from those
of bfloat16, relative, tells a wrong kernel from a right one and no more.

Bytes are the compiler's: arguments (the weights, and 0.5 MB of noise for 32), temporaries, and the
peak of both with the result; `in_use` is the allocator's largest number so far in this process.
"XLA's layouts" lets the compiler choose how weights lie in memory, so that none is transposed.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.kernels import cases
from experiments.bench.sampler.peers import num_bytes
from experiments.harness import networks, tables, timing
from experiments.harness import old_command as command
from qdiffjax import diffusion, hardware, precision
from qdiffjax.kernels import backends
from qdiffjax.precision import SiteQuant
from qdiffjax.precision.lowering import lower
from qdiffjax.quant import E4M3FN, ActivationGrid, IntFormat
from qdiffjax.sites import list_sites

BF16, LEAST_TOKENS = jnp.bfloat16, 128
INT8, INT4, UINT8 = IntFormat(8), IntFormat(4), IntFormat(8, signed=False)
RANGE = 8.0  # of the made-up static scales


class Way(NamedTuple):
    """Formats of weights and activations; None for bfloat16; and whether XLA chooses layouts."""

    weight: Any = None
    activation: ActivationGrid | None = None
    is_free: bool = False


def affine() -> ActivationGrid:
    """What `precision.calibration` makes of the range -RANGE/2 .. RANGE/2."""
    return ActivationGrid(UINT8, jnp.float32(RANGE / 255), jnp.int32(128))


def ways() -> dict[str, Way]:
    """All ways by name."""
    return {
        "bf16": Way(),
        "W8A8 static": Way(INT8, affine()),
        "W4A16": Way(INT4),
        "fp8 static": Way(E4M3FN, ActivationGrid(E4M3FN, jnp.float32(RANGE / 448))),
        "W8A8 dynamic": Way(INT8, ActivationGrid(INT8)),
        "W8A8 static, XLA's layouts": Way(INT8, affine(), True),
        "W4A8 dynamic": Way(INT4, ActivationGrid(INT8)),
        "W8A16": Way(INT8),
    }


BASE = "bf16"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    network: str = "dit_xl_2"
    batch: int = 32
    num_steps: int = 4
    num_rounds: int = 10
    ways: tuple[str, ...] = tuple(ways())
    stall: float = 300.0
    compile_only: bool = False


HELP = {
    "network": "a DiT, by its shapes", "batch": "samples of a run",
    "num_steps": "network calls of a run", "num_rounds": "runs of each", "ways": "to run it",
    "stall": "seconds to compile all ways, side by side",
    "compile_only": "stop there, to fill JAX's cache of compiled programs",
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    unknown = sorted({*config.ways} - {*ways()})
    if unknown or BASE not in config.ways:
        raise ValueError(f"ways: got {config.ways}, expected {BASE} and others of {[*ways()]}.")
    if config.network not in networks.SIZES:
        raise ValueError(f"network: got {config.network!r}, expected one of "
                         f"{sorted(networks.SIZES)}.")  # fmt: skip
    if min(config.batch, config.num_steps, config.num_rounds) < 1:
        raise ValueError("batch, steps and rounds must be at least 1.")


def build(name: str):
    """(eps_fn, random parameters in bfloat16) of a network that computes in bfloat16."""
    eps_fn, params = shapes(name)
    leaves, tree = jax.tree.flatten(params)
    return eps_fn, jax.tree.unflatten(tree, [drawn(i, s.shape) for i, s in enumerate(leaves)])


def shapes(name: str):
    """As `build`, parameters by their shapes."""
    net = networks.SIZES[name](num_classes=networks.NUM_CLASSES, learn_sigma=True, dtype=BF16)

    def eps_fn(params, x, t):
        eps: Any = net.apply(params, x, t)
        return eps[..., : x.shape[-1]]

    x = jnp.zeros((1, *networks.LATENT), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x, jnp.float32(0))
    return eps_fn, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, BF16), params)


@functools.partial(jax.jit, static_argnums=1)
def drawn(seed: int, shape):
    """A random parameter that keeps the size of what it multiplies."""
    size = 0.02 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[:-1]))
    return (size * jax.random.normal(jax.random.key(seed), shape, jnp.float32)).astype(BF16)


def quantized(eps_fn, params, sites, way: Way, x, path=None) -> precision.Quantized:
    """The network with codes for weights, without the weights they stand for."""
    dense = [s for s in sites if s.weight is not None and s.kind == "dot"][:-1]
    weights = precision.weight_operands(eps_fn, params, x, jnp.float32(0))
    bits = getattr(way.weight, "bits", 8)
    recipe = precision.uniform(
        sites, weight_bits=bits, activation_bits=None, globs=[s.name for s in dense]
    )
    codes = precision.prepare_codes(
        {s.name: weights[s.name].astype(jnp.float32) for s in dense}, sites, recipe,
        format_fn=lambda _: way.weight,
    )  # fmt: skip
    hows = {s.name: (way.activation,) if tokens(s) >= LEAST_TOKENS else (None,) for s in dense}
    inputs = {name: SiteQuant(codes[name], how) for name, how in hows.items()}
    inputs = precision.stored(inputs, sites, path)
    q = precision.Quantized(eps_fn, params, inputs, lower(path))
    return precision.drop_weights(q, x, jnp.float32(0))


def tokens(site) -> int:
    """Rows of the activation that a dense layer multiplies."""
    index = 1 - site.weight
    shape = site.shapes[index]
    return math.prod(shape) // math.prod(shape[a] for a in site.contract_axes[index])


def lowered(call_of: Callable, q, x, steps, is_free: bool):
    """The sampler, traced and not yet compiled."""

    def run(q, x):
        return diffusion.sample(call_of(q), x, steps, keep_trajectory=False).x_0

    if not is_free:
        return jax.jit(run).lower(q, x)
    from jax.experimental.layout import Format, Layout

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (q, x))
    return jax.jit(run, in_shardings=Format(Layout.AUTO)).lower(*shapes)


def compiled_ways(config: Config, x, steps) -> dict[str, Any]:
    """By name, (compiled, its arguments, where they lie as it wants them), or an exception."""
    eps_fn, params = build(config.network)
    sites = list_sites(eps_fn, params, x, jnp.float32(0))
    chosen, found, args = ways(), {}, {}
    for name in config.ways:
        way = chosen[name]
        q = params if name == BASE else quantized(eps_fn, params, sites, way, x)
        args[name] = q, x
        call_of: Any = precision.quantized_call
        if name == BASE:
            call_of = functools.partial(diffusion.bind, eps_fn)
        try:
            found[name] = lowered(call_of, q, x, steps, way.is_free).compile
        except Exception as error:
            found[name] = functools.partial(_raise, error)
    results = cases.with_limit([*found.values()], config.stall)
    return {
        name: run if isinstance(run, Exception) else (run, _placed(run, args[name], chosen[name]))
        for name, run in zip(found, results, strict=True)
    }


def _raise(error: Exception):
    raise error


def _placed(run, args, way: Way):
    return jax.device_put(args, run.input_formats[0]) if way.is_free else args


def run(config: Config, *, progress: bool = False):
    """Return `seconds` [num_rounds, ways] and a row for each way, those that failed too."""
    check(config)
    x = jax.random.normal(jax.random.key(1), (config.batch, *networks.LATENT))
    x = x.astype(jnp.float32)
    steps = diffusion.ddim(diffusion.linear(), config.num_steps)
    rows, turns, samples, made = [], {}, {}, compiled_ways(config, x, steps)
    for name, found in made.items():
        row: dict[str, Any] = {"name": name, "batch": config.batch, "path": backends.default().name}
        rows.append(row)
        try:
            if isinstance(found, Exception):
                raise found
            row |= memory(*found)
            if not config.compile_only:
                samples[name] = _finish(*found)
                turns[name] = functools.partial(_finish, *found)
                stats = jax.devices()[0].memory_stats() or {}
                row["in_use"] = stats.get("peak_bytes_in_use")
        except Exception as error:  # of a compiler, or of memory
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if BASE not in turns:
        return {"seconds": np.zeros((0, 0))}, rows
    seconds, _ = timing.interleave(turns, config.num_rounds)
    return {"seconds": seconds}, compared(rows, [*turns], seconds, samples, config.num_steps)


def memory(run, args) -> dict[str, Any]:
    """Bytes as compiled."""
    cost = hardware.read_cost(run)
    return {"arguments": cost.arguments, "temporaries": cost.temporaries, "peak": cost.peak,
            "argument_bits": 8 * num_bytes(args)}  # fmt: skip


def _finish(run, args):
    return jax.block_until_ready(run(*args))


def compared(rows, names, seconds, samples, num_steps: int) -> list[dict[str, Any]]:
    """Rows with times, and with ratios to the base."""
    base, first = names.index(BASE), next(r for r in rows if r["name"] == BASE)
    for row in rows:
        if row["name"] not in names:
            continue
        i = names.index(row["name"])
        far = samples[row["name"]] - samples[BASE]
        row |= {
            "ms": 1e3 * float(np.median(seconds[:, i])) / num_steps,
            "over_bf16": float(np.median(seconds[:, base] / seconds[:, i])),
            "peak_over_bf16": row["peak"] / first["peak"],
            "arguments_over_bf16": row["arguments"] / first["arguments"],
            "distance": float(jnp.linalg.norm(far) / jnp.linalg.norm(samples[BASE])),
        }
    return rows


COLUMNS = (("ms a step", "ms", 1.0), ("x bf16", "over_bf16", 1.0), ("arg. MB", "arguments", 1e6),
           ("temp. MB", "temporaries", 1e6), ("peak MB", "peak", 1e6),
           ("peak/bf16", "peak_over_bf16", 1.0), ("distance", "distance", 1.0))  # fmt: skip


def print_rows(rows, *, file=None) -> None:
    """Print a table with a line for each way."""
    screen, table = tables.console(file), tables.blank()
    for i, title in enumerate(("", *(title for title, *_ in COLUMNS))):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        cells = ("-" if row.get(key) is None else tables.number(row[key] / unit)
                 for _, key, unit in COLUMNS)  # fmt: skip
        table.add_row(row["name"], *cells)
    screen.print(table)
    for row in rows:
        if "failed" in row:
            screen.print(f"{row['name']}: {row['failed']}", markup=False)


EXPERIMENT = command.Experiment(
    "bench_dit_xl", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False,
    notes={"weights": "random"},
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
