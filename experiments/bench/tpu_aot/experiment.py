"""What kernels of codes would cost on TPUs, by the compiler's word; no TPU is needed.

    pip install 'qdiffjax[aot]'
    python -m experiments.bench.tpu_aot

Every product is compiled ahead of time twice: by XLA in bfloat16, and as a kernel that rounds
bfloat16 activations in vector memory and multiplies codes. Cycles are estimates: the compiler's
schedule for XLA, the instructions of a kernel counted; neither below what the matrix units and the
memory of the chip allow. `ratio` compares all operations of both, `ratio_product` all of the
kernel's with XLA's product alone, without the copies around it; `ratio_issued` counts the
instructions of both, with the waits for memory and matrix units that are known. W8A16 multiplies in
bfloat16 as XLA does: how far its ratio is below 1 says how far the two ways of counting differ.

Then a UNet and a DiT as samplers run them, inside one scan over the steps of DDIM, for each chip:
in bfloat16, lowered to W8A8 with our kernels, and lowered by XLA alone. The compiler states the
cycles of the loop's body once; `step` is that number, by its schedule, and `issued` the same step
by instructions; waits are known for v5e only. Last, which kernels compile for which chip.
"""

import dataclasses
import functools
from typing import Any

import jax

from experiments.bench.tpu_aot import costs, scans
from experiments.bench.tpu_aot.costs import MACS, WAYS
from experiments.harness import command
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import kernels, results
from qdiffjax._checks import require
from qdiffjax.hardware.ahead import tpu

NETWORKS = tuple(f"{name}-{chip}" for name in ("dit", "unet") for chip in tpu.CHIPS)
EXAMPLES = {"matmul": "512x512x512", "conv": "1x16x16x128x128"}  # to see whether a kernel compiles


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    chip: str = option("v5e", "Chip of the ratios.", choices=MACS)
    chips: tuple[str, ...] = option(
        tuple(tpu.CHIPS), "Chips to compile every kernel for.", choices=tpu.CHIPS
    )
    shapes: tuple[str, ...] = option(
        ("4096x512x512", "4096x1280x1280", "4096x1280x5120", "8x32x32x512x512", "8x32x32x640x640",
         "8x16x16x1280x1280"),
        "MxKxN, a matrix product, or BxHxWxKxN, a 3 x 3 convolution.", each=costs.shape_of,
    )  # fmt: skip
    hows: tuple[str, ...] = option(
        ("W8A8 static", "W8A8 dynamic", "W8A16"), "Ways to multiply codes.", choices=WAYS
    )
    compiled: tuple[str, ...] = option(
        ("W8A8 static", "W8A8 dynamic", "W4A8 static", "W4A16", "e4m3", "e5m2", "rounded",
         "random"),
        "Kernels to compile for every chip.", choices=(*WAYS, "rounded", "random"),
    )  # fmt: skip
    networks: tuple[str, ...] = option(
        NETWORKS, "Networks to sample from, and for which chip.", choices=NETWORKS
    )
    channels: tuple[int, ...] = option(
        (320, 640), "Channels of the UNet, by level.", least=1, repeats=True
    )
    width: int = option(768, "Width of the DiT, a multiple of 64.", least=64)
    depth: int = option(4, "Depth of the DiT.", least=1)
    side: int = option(32, "Side of the latents.", least=1)
    batch: int = option(8, "Number of latents.", least=1)
    num_steps: int = option(50, "Steps of the scan.", least=1, most=1000)

    def check(self) -> None:
        """Refuse a machine without the compiler."""
        require(not tpu.missing(), got=f"no {', '.join(tpu.missing())}", expected="XLA for TPUs",
                remedy="pip install 'qdiffjax[aot]'")  # fmt: skip


def run(config: Config, **options):
    """Return (no arrays, rows); touches no file. Options as `command.parts`."""
    c = config
    runs = [f"{network}-{way}" for network in c.networks for way in scans.WAYS]
    names = [*c.shapes, *(f"chip-{chip}" for chip in c.chips), *runs]
    shared = {name: value for name, value in dataclasses.asdict(c).items()
              if name not in ("shapes", "chips", "networks")}  # fmt: skip
    mark = results.fingerprint(shared, jax.__version__)
    done = command.parts(names, functools.partial(measure, c), mark, **options)
    return command.by_part(done), [row for _, rows in done.values() for row in rows]


def measure(config: Config, part: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (no arrays, rows) of a product, of a network on its chip in one way, or of a chip."""
    kind, _, rest = part.partition("-")
    if kind == "chip":
        return {}, [compiles(name, rest) for name in config.compiled]
    if kind in ("dit", "unet"):
        return {}, [scan_row(config, kind, *rest.split("-"))]
    return {}, product_rows(config, part)


def product_rows(config: Config, text: str) -> list[dict[str, Any]]:
    """Return rows of a product in bfloat16 and in codes, by our kernels and by XLA."""
    chip, shape = config.chip, costs.shape_of(text)
    real = costs.real_cost(shape, chip)
    least = costs.floor(shape, None, chip)
    base, product = max(real.cycles, least), max(*(op.cycles for op in real.ops), least)
    shared = {"part": text, "chip": chip, "compiler": real.compiler}
    rows = [shared | {"how": "bf16 XLA", "cycles": base, "product": product, "floor": least,
                      "issued": real.issued}]  # fmt: skip

    def add(name: str, cost: tpu.TpuCost, cycles: float, **more) -> None:
        rows.append(shared | {"how": name, "cycles": cycles, "ratio": cycles / base,
                              "issued": cost.issued, "ratio_issued": cost.issued / real.issued,
                              **more})  # fmt: skip

    for name in config.hows:
        cost = costs.code_cost(shape, WAYS[name], chip)
        least = costs.floor(shape, WAYS[name], chip)
        cycles = max(cost.cycles, least)
        add(name, cost, cycles, floor=least, ratio_product=cycles / product)
    cost = costs.code_cost(shape, WAYS["W8A8 static"], chip, kernels.XLA)
    add("W8A8 static by XLA", cost, cost.cycles)
    return rows


def compiles(name: str, chip: str) -> dict[str, Any]:
    """Return whether a product of [512, 512] and one of [1, 16, 16, 128] images compile."""

    def cycles(kind: str) -> Any:
        try:
            if kind == "rounding":
                return costs.rounding_cost(name, chip).cycles
            return costs.code_cost(costs.shape_of(EXAMPLES[kind]), WAYS[name], chip).cycles
        except RuntimeError as error:
            return costs.reason(str(error))

    kinds = EXAMPLES if name in WAYS else ("rounding",)
    return {"part": f"chip-{chip}", "chip": chip, "how": name, **{k: cycles(k) for k in kinds}}


def scan_row(config: Config, name: str, chip: str, way: str) -> dict[str, Any]:
    """Return the row of a sampling run by its shapes; a reason where the compiler fails."""
    c = config
    network = (scans.unet(c.channels, c.side, c.batch) if name == "unet"
               else scans.dit(c.width, c.depth, c.side, c.batch))  # fmt: skip
    lowered = len(network.denoiser.site_inputs) if way != "bf16" else 0
    row: dict[str, Any] = {"part": f"{name}-{chip}-{way}", "chip": chip, "how": way,
                           "lowered": lowered}  # fmt: skip
    try:
        cost = scans.scan_cost(network, way, c.num_steps, chip)
        row |= scans.by_step(cost, c.num_steps)
    except RuntimeError as error:
        return row | {"reason": costs.reason(str(error))}
    return row | {"memory": cost.memory, "compiler": cost.compiler}


SHOWN = (
    "cycles", "product", "floor", "ratio", "ratio_product", "ratio_issued", "step", "issued",
    "products", "outside", "reason", "matmul", "conv", "rounding",
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each row: numbers, and reasons where something does not compile."""
    real = {row["part"]: row for row in rows if row["how"] == "bf16"}
    cells = []
    for row in rows:
        base = real.get(row["part"].replace(row["how"], "bf16"), row)
        cells.append({"part": row["part"], "how": row["how"]})
        if base is not row:
            cells[-1] |= {f"{k} / bf16": row[k] / base[k] for k in ("step", "issued")
                          if k in row and k in base}  # fmt: skip
        cells[-1] |= {k: f"{k}: {row[k]}" if isinstance(row[k], str) else row[k]
                      for k in SHOWN if k in row}  # fmt: skip
    return list(tables.lines(cells))


EXPERIMENT = command.experiment(Config, run, table=table)
