"""What sampling with DiT-XL/2 takes of a Hopper GPU, by XLA's word; no GPU is needed.

    pip install 'qdiffjax[aot-gpu]'
    JAX_PLATFORMS=cpu python -m experiments.bench.gpu_aot

The scans of `bench_dit_xl` are compiled ahead of time for an H200: bytes of arguments, temporaries
and their peak, and what one pass through the loop launches. Every way runs with its codes as the
network has its weights, [K, N], and stored as kernels read them, [N, K]: the first keeps a second
copy of all codes. Launches that are `small` make less than 64 KiB each.

Bytes are the compiler's; no product was chosen by timing, as on a GPU. Nothing was run, no time was
measured. bfloat16 is compiled for cuBLAS: without timing XLA finds no tiles of its own there.
"""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import dit_xl
from experiments.bench.dit_xl import BASE
from experiments.harness import networks, tables
from experiments.harness import old_command as command
from qdiffjax import diffusion, kernels, precision
from qdiffjax.hardware.ahead import gpu
from qdiffjax.sites import list_sites

ORDERS = {"[K, N]": dataclasses.replace(kernels.GPU, sums_last=False), "[N, K]": kernels.GPU}
OPTIONS = {BASE: {"xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled."""

    network: str = "dit_xl_2"
    batches: tuple[int, ...] = (1, 32)
    num_steps: int = 4
    ways: tuple[str, ...] = (
        BASE, "W4A16", "W8A16", "W8A8 static", "W8A8 dynamic", "W4A8 dynamic", "fp8 static",
    )  # fmt: skip
    chip: str = "H200"


HELP = {
    "network": "a DiT, by its shapes", "batches": "samples of a run",
    "num_steps": "network calls of a run", "ways": f"to run it; {BASE} among them",
    "chip": f"one of {', '.join(gpu.CHIPS)}",
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if lacking := gpu.missing():
        raise ValueError(f"{', '.join(lacking)} not installed: pip install 'qdiffjax[aot-gpu]'.")
    gpu.target(config.chip)
    for batch in config.batches or (0,):
        dit_xl.check(dit_xl.Config(config.network, batch, config.num_steps, ways=config.ways))


def run(config: Config, *, progress: bool = False):
    """Return no arrays, and a row for each way, batch and order of codes."""
    rows: list[dict[str, Any]] = []
    for batch in config.batches:
        for name in config.ways:
            for order in ORDERS if name != BASE else [next(iter(ORDERS))]:
                rows.append({"name": name, "batch": batch, "order": order})
                rows[-1] |= cost(config, name, batch, ORDERS[order])
                if progress:
                    print(rows[-1], flush=True)
    for row in rows:
        base = next(r for r in rows if r["name"] == BASE and r["batch"] == row["batch"])
        row["peak_over_bf16"] = row["peak"] / base["peak"]
    return {}, rows


def cost(config: Config, name: str, batch: int, path) -> dict[str, Any]:
    """Bytes, and launches by kind, of one scan."""
    fn, args = scan(config, name, batch, path)
    found = gpu.gpu_cost(fn, *args, chip=config.chip, options=OPTIONS.get(name))
    bytes_ = found.compiled
    return {
        "arguments": bytes_.arguments, "temporaries": bytes_.temporaries, "peak": bytes_.peak,
        "once": found.entry._asdict(), "loop": found.loops._asdict(), "compiler": found.compiler,
    }  # fmt: skip


def scan(config: Config, name: str, batch: int, path):
    """The sampler, and the shapes of its arguments."""
    x = jax.ShapeDtypeStruct((batch, *networks.LATENT), jnp.float32)
    eps_fn, params = dit_xl.shapes(config.network)
    steps = diffusion.ddim(diffusion.linear(), config.num_steps)
    q: Any = params
    call_of: Any = functools.partial(diffusion.bind, eps_fn)
    if name != BASE:
        sites = list_sites(eps_fn, params, x, jnp.float32(0))
        way = dit_xl.ways()[name]
        quantized = functools.partial(dit_xl.quantized, eps_fn)
        q = jax.eval_shape(lambda p, x: quantized(p, sites, way, x, path), params, x)
        call_of = precision.quantized_call

    def sample(q, x):
        return diffusion.sample(call_of(q), x, steps, keep_trajectory=False).x_0

    return sample, (q, x)


def print_rows(rows, *, file=None) -> None:
    """Print a table with a line for each program."""
    screen, table = tables.console(file), tables.blank()
    titles = ("", "batch", "codes", "arg. MB", "temp. MB", "peak/bf16", "turned once", "launches",
              "small", "turned")  # fmt: skip
    for title in titles:
        table.add_column(title, justify="left" if title in ("", "codes") else "right", no_wrap=True)
    for row in rows:
        loop = row["loop"]
        total = sum(loop[kind] for kind in ("fusions", "calls", "copies", "others"))
        cells = (row["batch"], row["order"], tables.number(row["arguments"] / 1e6),
                 tables.number(row["temporaries"] / 1e6), tables.number(row["peak_over_bf16"]),
                 row["once"]["transposes"], total, loop["small"], loop["transposes"])  # fmt: skip
        table.add_row(row["name"], *map(str, cells))
    screen.print(table)


EXPERIMENT = command.Experiment(
    "bench_gpu_aot", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
