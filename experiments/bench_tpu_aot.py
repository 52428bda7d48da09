"""What kernels of codes would cost on TPUs, by the compiler's word; no TPU is needed.

    pip install 'qdiffjax[aot]'
    python -m experiments.bench_tpu_aot

Every product is compiled ahead of time twice: by XLA in bfloat16, and as a kernel that rounds
bfloat16 activations in vector memory and multiplies codes. Cycles are estimates: the compiler's
schedule for XLA, the instructions of a kernel counted; neither below what the matrix units and the
memory of the chip allow. `ratio` compares all operations of both, `ratio_product` all of the
kernel's with XLA's product alone, without the copies around it. W8A16 multiplies in bfloat16 as
XLA does: how far its ratio is below 1 says how far the two ways of counting differ. Then a call
of a UNet in bfloat16 beside the same call lowered to W8A8, and which kernels compile for which
chip.
"""

import dataclasses
import sys
from typing import Any

import jax

from experiments import bench_tpu_aot_parts as parts
from experiments import command, store
from qdiffjax import kernels
from qdiffjax.hardware import aot
from qdiffjax.kernels.tpu.blocks import TABLE


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    chip: str = "v5e"
    chips: tuple[str, ...] = tuple(aot.CHIPS)
    shapes: tuple[str, ...] = (
        "4096x512x512", "4096x1280x1280", "4096x1280x5120", "8x32x32x512x512", "8x32x32x640x640",
        "8x16x16x1280x1280",
    )  # fmt: skip
    hows: tuple[str, ...] = ("W8A8 static", "W8A8 dynamic", "W8A16")
    compiled: tuple[str, ...] = (
        "W8A8 static", "W8A8 dynamic", "W4A8 static", "W4A16", "e4m3", "e5m2", "rounded", "random",
    )  # fmt: skip
    channels: tuple[int, ...] = (320, 640)
    side: int = 32
    batch: int = 8


HELP = {
    "chip": f"of the ratios and the UNet; one of {', '.join(parts.MACS)}",
    "chips": f"to compile every kernel for, of {', '.join(aot.CHIPS)}",
    "shapes": "MxKxN, a matrix product, or BxHxWxKxN, a 3 x 3 convolution",
    "hows": f"how codes multiply, of {', '.join(parts.HOWS)}",
    "compiled": f"kernels to compile for every chip, of {', '.join(parts.HOWS)}, rounded, random",
    "channels": "of the UNet, by level",
    "side": "of the UNet's latents",
    "batch": "of the UNet",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if lacking := aot.missing():
        raise ValueError(f"{', '.join(lacking)} not installed: pip install 'qdiffjax[aot]'.")
    for text in config.shapes:
        parts.shape_of(text)
    known = (("chip", (config.chip,), parts.MACS), ("chips", config.chips, aot.CHIPS),
             ("hows", config.hows, parts.HOWS),
             ("compiled", config.compiled, (*parts.HOWS, "rounded", "random")))  # fmt: skip
    for name, values, allowed in known:
        if not set(values) <= set(allowed):
            raise ValueError(f"{name}: got {values}, expected some of {', '.join(allowed)}.")


class Study:
    """The parts of a run, by name."""

    def __init__(self, config: Config):
        self.config = config

    def names(self) -> list[str]:
        """Each product, the UNet three times, each chip."""
        unet = [f"unet-{name}" for name in ("bf16", "kernels", "xla")]
        return [*self.config.shapes, *unet, *(f"chip-{c}" for c in self.config.chips)]

    def measure(self, part: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return (no arrays, rows) of one part."""
        kind, _, what = part.partition("-")
        if kind == "chip":
            return {}, [self._compiles(name, what) for name in self.config.compiled]
        if kind == "unet":
            return {}, [self._unet(what)]
        return {}, self._product(part)

    def _product(self, text: str) -> list[dict[str, Any]]:
        chip, shape = self.config.chip, parts.shape_of(text)
        real = parts.real_cost(shape, chip)
        least = parts.floor(shape, None, chip)
        base, product = max(real.cycles, least), max(*(op.cycles for op in real.ops), least)
        said = {"part": text, "chip": chip, "compiler": real.compiler}
        rows = [said | {"how": "bf16 XLA", "cycles": base, "product": product, "floor": least}]
        for name in self.config.hows:
            how = parts.HOWS[name]
            cost, least = parts.code_cost(shape, how, chip), parts.floor(shape, how, chip)
            cycles = max(cost.cycles, least)
            ratios = {"ratio": cycles / base, "ratio_product": cycles / product}
            rows.append(said | {"how": name, "cycles": cycles, "floor": least} | ratios)
        cost = parts.code_cost(shape, parts.HOWS["W8A8 static"], chip, kernels.XLA)
        rows.append(said | {"how": "W8A8 static by XLA", "cycles": cost.cycles,
                            "ratio": cost.cycles / base})  # fmt: skip
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

    def _unet(self, what: str) -> dict[str, Any]:
        c = self.config
        net = parts.unet(c.channels, c.side, c.batch)
        path = kernels.XLA if what == "xla" else kernels.tpu_path(blocks=TABLE[c.chip])
        cost = parts.call_cost(net, c.chip, path, lowered=what != "bf16")
        products = sum(op.calls * op.cycles for op in cost.ops if parts.is_product(op))
        return {"part": f"unet-{what}", "chip": c.chip, "how": what, "cycles": cost.cycles,
                "products": products, "memory": cost.memory, "compiler": cost.compiler,
                "lowered": len(net.inputs) if what != "bf16" else 0}  # fmt: skip


def run(config: Config, **options):
    """Return (no arrays, rows); touches no file. Options as `command.parts`."""
    check(config)
    study = Study(config)
    mark = store.fingerprint(dataclasses.asdict(config), jax.__version__)
    found = command.parts(study.names(), study.measure, mark, **options)
    return command.by_part(found), [row for _, rows in found.values() for row in rows]


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a line for each row: numbers as they are, reasons where something does not compile."""
    base = next((r["cycles"] for r in rows if r["part"] == "unet-bf16"), None)
    for row in rows:
        shown = {"ratio": row["cycles"] / base} if base and row["part"].startswith("unet") else {}
        shown |= {k: row[k] for k in ("cycles", "product", "products", "floor", "ratio",
                                      "ratio_product", "matmul", "conv", "rounding")
                  if k in row}  # fmt: skip
        cells = (f"{k} {v:.4g}" if isinstance(v, (int, float)) else f"{k}: {v}"
                 for k, v in shown.items())  # fmt: skip
        print(f"{row['part']:<22} {row['how']:<20} {'  '.join(cells)}")


EXPERIMENT = command.Experiment(
    "bench_tpu_aot", __doc__ or "", Config, HELP, check, run, lambda folder: None, print_rows
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the lines, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
