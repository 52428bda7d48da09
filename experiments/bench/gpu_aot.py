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
from typing import Any

import jax

from experiments.bench import dit_xl
from experiments.bench.dit_xl import BASE, WAYS
from experiments.harness import command, networks
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import kernels
from qdiffjax._checks import require
from qdiffjax.hardware.ahead import gpu
from qdiffjax.sites import list_sites

ORDERS = {"[K, N]": dataclasses.replace(kernels.GPU, sums_last=False), "[N, K]": kernels.GPU}
OPTIONS = {BASE: {"xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    network: str = option("dit_xl_2", "A DiT, by its shapes.", choices=networks.SIZES)
    batches: tuple[int, ...] = option((1, 32), "Numbers of samples of a run.", least=1)
    num_steps: int = option(4, "Number of network calls of a run.", least=1, most=1000)
    ways: tuple[str, ...] = option(
        (BASE, "W4A16", "W8A16", "W8A8 static", "W8A8 dynamic", "W4A8 dynamic", "fp8 static"),
        f"Ways to run it, {BASE} too.", choices=WAYS,
    )  # fmt: skip
    chip: str = option("H200", "GPU to compile for.", choices=gpu.CHIPS)

    def check(self) -> None:
        """Refuse ways without a base, and a machine without the compiler."""
        dit_xl.check_ways(self.ways)
        require(not gpu.missing(), got=f"no {', '.join(gpu.missing())}", expected="XLA for GPUs",
                remedy="pip install 'qdiffjax[aot-gpu]'")  # fmt: skip


def run(config: Config, *, progress: bool = False):
    """Return no arrays, and a row for each way, batch and order of codes."""
    programs = [(batch, name, order) for batch in config.batches for name in config.ways
                for order in (ORDERS if name != BASE else [*ORDERS][:1])]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for batch, name, order in programs:
        row = {"name": name, "batch": batch, "order": order}
        rows.append(row | cost(config, name, batch, ORDERS[order]))
        if progress:
            print(rows[-1], flush=True)
    peaks = {row["batch"]: row["peak"] for row in rows if row["name"] == BASE}
    return {}, [row | {"peak_over_bf16": row["peak"] / peaks[row["batch"]]} for row in rows]


def cost(config: Config, name: str, batch: int, path) -> dict[str, Any]:
    """Return the bytes, and the launches by kind, of one scan."""
    fn, args = scan(config, name, batch, path)
    whole = gpu.gpu_cost(fn, *args, chip=config.chip, options=OPTIONS.get(name))
    compiled = whole.compiled
    return {
        "arguments": compiled.arguments, "temporaries": compiled.temporaries,
        "peak": compiled.peak, "once": whole.entry._asdict(), "loop": whole.loops._asdict(),
        "compiler": whole.compiler,
    }  # fmt: skip


def scan(config: Config, name: str, batch: int, path):
    """Return the sampler, and the shapes of its arguments."""
    network = networks.load(config.network, dit_xl.BF16)
    params, x, t = network.arguments(batch)
    sites = list_sites(network.eps_fn, params, x, t)

    def version(params, x):
        return dit_xl.version(network._replace(params=params), sites, name, x, path)

    q = jax.eval_shape(version, params, x)
    return dit_xl.sampler(name, config.num_steps), (q, x)


def launches(row) -> int:
    """Return the number of launches in one pass through the loop."""
    return sum(row["loop"][kind] for kind in ("fusions", "calls", "copies", "others"))


COLUMNS = (
    ("", lambda r: r["name"]), ("batch", lambda r: r["batch"]), ("codes", lambda r: r["order"]),
    ("arg. MB", tables.numbers("arguments", unit=1e6)),
    ("temp. MB", tables.numbers("temporaries", unit=1e6)),
    ("peak/bf16", tables.numbers("peak_over_bf16")),
    ("turned once", lambda r: r["once"]["transposes"]), ("launches", launches),
    ("small", lambda r: r["loop"]["small"]), ("turned", lambda r: r["loop"]["transposes"]),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=lambda rows: [tables.columns(rows, COLUMNS)],
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
