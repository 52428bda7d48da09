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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import peers
from experiments.harness import command, networks, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import diffusion, precision
from qdiffjax._checks import require
from qdiffjax.denoiser import Denoiser
from qdiffjax.hardware import measured, read_cost
from qdiffjax.kernels import backends
from qdiffjax.quant import E4M3FN, ActivationGrid, IntFormat
from qdiffjax.sites import list_sites

BF16, LEAST_TOKENS = jnp.bfloat16, 128
INT8, INT4, UINT8 = IntFormat(8), IntFormat(4), IntFormat(8, signed=False)
RANGE = 8.0  # of the made-up static scales
# What `precision.calibration` makes of the range -RANGE/2 .. RANGE/2.
AFFINE = ActivationGrid(UINT8, np.float32(RANGE / 255), np.int32(128))


class Way(NamedTuple):
    """Formats of weights and activations, None for bfloat16; whether XLA chooses layouts."""

    weight: Any = None
    activation: ActivationGrid | None = None
    is_free: bool = False


BASE = "bf16"
WAYS = {
    BASE: Way(),
    "W8A8 static": Way(INT8, AFFINE),
    "W4A16": Way(INT4),
    "fp8 static": Way(E4M3FN, ActivationGrid(E4M3FN, np.float32(RANGE / 448))),
    "W8A8 dynamic": Way(INT8, ActivationGrid(INT8)),
    "W8A8 static, XLA's layouts": Way(INT8, AFFINE, True),
    "W4A8 dynamic": Way(INT4, ActivationGrid(INT8)),
    "W8A16": Way(INT8),
}


def check_ways(ways: tuple[str, ...]) -> None:
    """Refuse ways that leave out the one to compare with; raises ValueError."""
    require(
        BASE in ways,
        "ways",
        got=ways,
        expected=f"{BASE} and others",
        remedy="name the base and at least one more",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    network: str = option("dit_xl_2", "A DiT, by its shapes.", choices=networks.SIZES)
    batch: int = option(32, "Number of samples of a run.", least=1)
    num_steps: int = option(4, "Number of network calls of a run.", least=1, most=1000)
    num_rounds: int = option(10, "Number of runs of each.", least=1)
    ways: tuple[str, ...] = option(tuple(WAYS), f"Ways to run it, {BASE} too.", choices=WAYS)
    stall: float = option(300.0, "Seconds to compile all ways, side by side.", above=0)
    compile_only: bool = option(False, "Stop there, to fill JAX's cache of compiled programs.")

    def check(self) -> None:
        """Refuse ways without a base."""
        check_ways(self.ways)


def quantized(network: networks.Network, sites, way: Way, x, path=None) -> precision.Quantized:
    """Return the network with codes for weights, without the weights they stand for."""
    dense = [s for s in sites if s.weight is not None and s.kind == "dot"][:-1]
    weights = precision.weight_operands(network.eps_fn, network.params, x, jnp.float32(0))
    bits = getattr(way.weight, "bits", 8)
    recipe = precision.Recipe({
        s.name: precision.SiteBits(bits, 8 if tokens(s) >= LEAST_TOKENS else None) for s in dense
    })  # fmt: skip
    calibration = precision.Calibration(
        Denoiser(network.eps_fn, network.params), sites,
        {s.name: weights[s.name].astype(jnp.float32) for s in dense},
        dict.fromkeys(recipe.bits, ((-RANGE / 2, RANGE / 2),)),
    )  # fmt: skip
    q = precision.lower(
        calibration, recipe, path=path, format_fn=lambda _: way.weight,
        grid_fn=lambda *_: way.activation,
    )  # fmt: skip
    return precision.drop_weights(q, x, jnp.float32(0))


def tokens(site) -> int:
    """Return the number of rows of the activation that a dense layer multiplies."""
    index = 1 - site.weight
    shape = site.shapes[index]
    return math.prod(shape) // math.prod(shape[a] for a in site.contract_axes[index])


def version(network: networks.Network, sites, name: str, x, path=None) -> precision.Quantized:
    """Return what the scan of a way takes: the network as it is, or with codes for weights."""
    if name == BASE:
        return precision.Quantized(Denoiser(network.eps_fn, network.params), {})
    return quantized(network, sites, WAYS[name], x, path)


def sampler(name: str, num_steps: int):
    """Return the scan of a way: (version, x_T) -> samples."""
    call_of = precision.full_call if name == BASE else precision.quantized_call
    return timing.scan(call_of, diffusion.ddim(diffusion.linear(), num_steps))


def lowered(run, args, is_free: bool):
    """Trace a scan; with `is_free` XLA chooses how its arguments lie in memory."""
    if not is_free:
        return jax.jit(run).lower(*args)
    from jax.experimental.layout import Format, Layout

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    return jax.jit(run, in_shardings=Format(Layout.AUTO)).lower(*shapes)


def compiled_ways(config: Config, x) -> dict[str, tuple[Any, Any]]:
    """Return by name what was compiled, or an exception, and its arguments."""
    network = networks.load(config.network, BF16)
    network = network._replace(params=networks.random_params(network))
    sites = list_sites(network.eps_fn, network.params, x, jnp.float32(0))
    args = {name: (version(network, sites, name, x), x) for name in config.ways}
    traced = [
        timing.attempt(functools.partial(
            lowered, sampler(name, config.num_steps), args[name], WAYS[name].is_free
        ))
        for name in config.ways
    ]  # fmt: skip
    jobs = [lambda scan=scan: timing.result(scan).compile() for scan in traced]
    programs = timing.with_limit(jobs, config.stall)
    return dict(zip(args, zip(programs, args.values(), strict=True), strict=True))


def run(config: Config, *, progress: bool = False):
    """Return `seconds` [num_rounds, ways] and a row for each way, those that failed too."""
    x = jax.random.normal(jax.random.key(1), (config.batch, *networks.LATENT))
    x = x.astype(jnp.float32)
    rows, turns, samples = {}, {}, {}
    for name, (program, args) in compiled_ways(config, x).items():
        row = {"name": name, "batch": config.batch, "path": backends.default().name}
        rows[name] = row
        try:
            run = timing.result(program)
            if WAYS[name].is_free:
                args = jax.device_put(args, run.input_formats[0])
            row |= memory(run, args)
            if not config.compile_only:
                samples[name] = timing.finish(run, *args)
                turns[name] = functools.partial(timing.finish, run, *args)
                row["in_use"] = measured.peak_bytes()
        except Exception as error:  # of a compiler, or of memory
            row["failed"] = timing.words(error)
    if BASE not in turns:
        return {"seconds": np.zeros((0, 0))}, [*rows.values()]
    seconds, _, each = timing.compare(turns, config.num_rounds, base=[BASE])
    for t in each:
        rows[t.name] |= compared(t, rows, samples, config.num_steps)
    return {"seconds": seconds}, [*rows.values()]


def memory(run, args) -> dict[str, Any]:
    """Return the bytes of a compiled function."""
    cost = read_cost(run)
    return {"arguments": cost.arguments, "temporaries": cost.temporaries, "peak": cost.peak,
            "argument_bits": 8 * peers.num_bytes(args)}  # fmt: skip


def compared(timed: timing.Timed, rows, samples, num_steps: int) -> dict[str, Any]:
    """Return the times of a way, and its ratios to the base."""
    row, base = rows[timed.name], rows[BASE]
    far = jnp.linalg.norm(samples[timed.name] - samples[BASE])
    return {
        "ms": timed.milliseconds / num_steps,
        "over_bf16": float(np.median(timed.base / timed.wall)),
        "peak_over_bf16": row["peak"] / base["peak"],
        "arguments_over_bf16": row["arguments"] / base["arguments"],
        "distance": float(far / jnp.linalg.norm(samples[BASE])),
    }


COLUMNS = (
    ("", lambda r: r["name"]), ("ms a step", tables.numbers("ms")),
    ("x bf16", tables.numbers("over_bf16")), ("arg. MB", tables.numbers("arguments", unit=1e6)),
    ("temp. MB", tables.numbers("temporaries", unit=1e6)),
    ("peak MB", tables.numbers("peak", unit=1e6)),
    ("peak/bf16", tables.numbers("peak_over_bf16")), ("distance", tables.numbers("distance")),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=lambda rows: [tables.columns(rows, COLUMNS), *tables.reasons(rows, "failed", "name")],
    notes={"weights": "random"},
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
