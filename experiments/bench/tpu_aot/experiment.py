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
from typing import Any

import jax

from experiments.bench.tpu_aot import products as parts
from experiments.bench.tpu_aot import scans
from experiments.harness import old_command as command
from experiments.harness import store
from qdiffjax import kernels
from qdiffjax.hardware.ahead import tpu

NETWORKS = tuple(f"{name}-{chip}" for name in ("dit", "unet") for chip in tpu.CHIPS)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    chip: str = "v5e"
    chips: tuple[str, ...] = tuple(tpu.CHIPS)
    shapes: tuple[str, ...] = (
        "4096x512x512", "4096x1280x1280", "4096x1280x5120", "8x32x32x512x512", "8x32x32x640x640",
        "8x16x16x1280x1280",
    )  # fmt: skip
    hows: tuple[str, ...] = ("W8A8 static", "W8A8 dynamic", "W8A16")
    compiled: tuple[str, ...] = (
        "W8A8 static", "W8A8 dynamic", "W4A8 static", "W4A16", "e4m3", "e5m2", "rounded", "random",
    )  # fmt: skip
    networks: tuple[str, ...] = NETWORKS
    channels: tuple[int, ...] = (320, 640)
    width: int = 768
    depth: int = 4
    side: int = 32
    batch: int = 8
    num_steps: int = 50


HELP = {
    "chip": f"of the ratios; one of {', '.join(parts.MACS)}",
    "chips": f"to compile every kernel for, of {', '.join(tpu.CHIPS)}",
    "shapes": "MxKxN, a matrix product, or BxHxWxKxN, a 3 x 3 convolution",
    "hows": f"how codes multiply, of {', '.join(parts.HOWS)}",
    "compiled": f"kernels to compile for every chip, of {', '.join(parts.HOWS)}, rounded, random",
    "networks": "to sample from, and for which chip: unet or dit, a dash, the chip",
    "channels": "of the UNet, by level",
    "width": "of the DiT, a multiple of 64",
    "depth": "of the DiT",
    "side": "of the latents",
    "batch": "of the latents",
    "num_steps": "of the scan",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if lacking := tpu.missing():
        raise ValueError(f"{', '.join(lacking)} not installed: pip install 'qdiffjax[aot]'.")
    for text in config.shapes:
        parts.shape_of(text)
    known = (("chip", (config.chip,), parts.MACS), ("chips", config.chips, tpu.CHIPS),
             ("hows", config.hows, parts.HOWS), ("networks", config.networks, NETWORKS),
             ("compiled", config.compiled, (*parts.HOWS, "rounded", "random")))  # fmt: skip
    for name, values, allowed in known:
        if not set(values) <= set(allowed):
            raise ValueError(f"{name}: got {values}, expected some of {', '.join(allowed)}.")


class Study:
    """The parts of a run, by name."""

    def __init__(self, config: Config):
        self.config = config

    def names(self) -> list[str]:
        """Each product, each network on its chip in three ways, each chip."""
        c = self.config
        runs = [f"{network}-{how}" for network in c.networks for how in scans.HOWS]
        return [*c.shapes, *(f"chip-{chip}" for chip in c.chips), *runs]

    def measure(self, part: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return (no arrays, rows) of one part."""
        kind, _, rest = part.partition("-")
        if kind == "chip":
            return {}, [self._compiles(name, rest) for name in self.config.compiled]
        if kind in ("dit", "unet"):
            return {}, [self._scan(kind, *rest.split("-"))]
        return {}, self._product(part)

    def _product(self, text: str) -> list[dict[str, Any]]:
        chip, shape = self.config.chip, parts.shape_of(text)
        real = parts.real_cost(shape, chip)
        least = parts.floor(shape, None, chip)
        base, product = max(real.cycles, least), max(*(op.cycles for op in real.ops), least)
        said = {"part": text, "chip": chip, "compiler": real.compiler}
        rows = [said | {"how": "bf16 XLA", "cycles": base, "product": product, "floor": least,
                        "issued": real.issued}]  # fmt: skip
        for name in self.config.hows:
            how = parts.HOWS[name]
            cost, least = parts.code_cost(shape, how, chip), parts.floor(shape, how, chip)
            cycles = max(cost.cycles, least)
            ratios = {"ratio": cycles / base, "ratio_product": cycles / product,
                      "ratio_issued": cost.issued / real.issued}  # fmt: skip
            rows.append(said | {"how": name, "cycles": cycles, "floor": least,
                                "issued": cost.issued} | ratios)  # fmt: skip
        cost = parts.code_cost(shape, parts.HOWS["W8A8 static"], chip, kernels.XLA)
        rows.append(said | {"how": "W8A8 static by XLA", "cycles": cost.cycles,
                            "ratio": cost.cycles / base, "issued": cost.issued,
                            "ratio_issued": cost.issued / real.issued})  # fmt: skip
        return rows

    def _compiles(self, name: str, chip: str) -> dict[str, Any]:
        """Whether a product of [512, 512] and one of [1, 16, 16, 128] images compile."""
        row: dict[str, Any] = {"part": f"chip-{chip}", "chip": chip, "how": name}
        texts = {"matmul": "512x512x512", "conv": "1x16x16x128x128"}
        for kind in texts if name in parts.HOWS else ("rounding",):
            try:
                if kind == "rounding":
                    row[kind] = parts.rounding_cost(name, chip).cycles
                else:
                    shape = parts.shape_of(texts[kind])
                    row[kind] = parts.code_cost(shape, parts.HOWS[name], chip).cycles
            except RuntimeError as error:
                row[kind] = parts.reason(str(error))
        return row

    def _scan(self, name: str, chip: str, how: str) -> dict[str, Any]:
        """A sampling run by its shapes; a reason where the compiler fails."""
        row: dict[str, Any] = {"part": f"{name}-{chip}-{how}", "chip": chip, "how": how}
        net = self._network(name)
        row["lowered"] = len(net.denoiser.site_inputs) if how != "bf16" else 0
        try:
            cost = scans.scan_cost(net, how, self.config.num_steps, chip)
            row |= scans.by_step(cost, self.config.num_steps)
        except RuntimeError as error:
            return row | {"reason": parts.reason(str(error))}
        return row | {"memory": cost.memory, "compiler": cost.compiler}

    def _network(self, name: str) -> scans.Network:
        c = self.config
        if name == "unet":
            return scans.unet(c.channels, c.side, c.batch)
        return scans.dit(c.width, c.depth, c.side, c.batch)


def run(config: Config, **options):
    """Return (no arrays, rows); touches no file. Options as `command.parts`."""
    check(config)
    study = Study(config)
    said = dataclasses.asdict(config)
    own = {
        k: v for k, v in said.items() if k not in ("shapes", "chips", "networks")
    }  # of each part
    mark = store.fingerprint(own, jax.__version__)
    found = command.parts(study.names(), study.measure, mark, **options)
    return command.by_part(found), [row for _, rows in found.values() for row in rows]


SHOWN = (
    "cycles", "product", "floor", "ratio", "ratio_product", "ratio_issued", "step", "issued",
    "products", "outside", "reason", "matmul", "conv", "rounding",
)  # fmt: skip


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a line for each row: numbers as they are, reasons where something does not compile."""
    real = {row["part"]: row for row in rows if row["how"] == "bf16"}
    for row in rows:
        base = real.get(row["part"].replace(row["how"], "bf16"), {})
        shown = {f"{k} / bf16": row[k] / base[k] for k in ("step", "issued")
                 if k in row and k in base and row is not base}  # fmt: skip
        shown |= {k: row[k] for k in SHOWN if k in row}
        cells = (f"{k} {v:.4g}" if isinstance(v, (int, float)) else f"{k}: {v}"
                 for k, v in shown.items())  # fmt: skip
        print(f"{row['part']:<22} {row['how']:<20} {'  '.join(cells)}")


EXPERIMENT = command.Experiment(
    "bench_tpu_aot", __doc__ or "", Config, HELP, check, run, lambda folder: None, print_rows
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the lines, write the results."""
    return command.main(EXPERIMENT, argv)
