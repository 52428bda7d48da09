"""What precision costs: bytes, multiplications, time and energy of networks, site by site.

    python -m experiments.hardware_cost

Bytes, MACs and bit-operations are counted, and hold for any machine that packs codes. Times on
chips are predicted: rooflines of the products alone, each operand read from memory once. Energy is
predicted for 45 nm arithmetic and HBM2. The last layer stays in full precision. DiT-XL/2 is known
by its shapes; it has no weights here. Then XLA's own count of the float32 networks, and a call of
the first network on this machine beside the roofline of its measured peak and bandwidth.
"""

import dataclasses
from typing import Any

from experiments.hardware_cost import measure as parts
from experiments.hardware_cost import plots
from experiments.harness import networks, store
from experiments.harness import old_command as command
from qdiffjax import hardware, labels
from qdiffjax.networks import denoisers


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    networks: tuple[str, ...] = ("fashion_unet", "fashion_dit", "dit_xl_2")
    batches: tuple[int, ...] = (1, 64)
    measured_batch: int = 64
    num_rounds: int = 100


HELP = {
    "networks": f"checkpoints, or any of {', '.join(networks.SIZES)}; the first one is measured",
    "batches": "samples of a call",
    "measured_batch": "samples of the call that is measured",
    "num_rounds": "times that it is measured",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError, FileNotFoundError."""
    for name in config.networks:
        if name not in networks.SIZES:
            denoisers.find_checkpoint(name)
    if min(*config.batches, config.measured_batch, config.num_rounds) < 1:
        raise ValueError(f"expected batches and rounds of at least 1, got {config}.")
    if config.networks[0] in networks.SIZES:
        raise ValueError(
            f"got {config.networks[0]} first, which has no weights to measure; put a checkpoint "
            "first."
        )


class Study:
    """The parts of a run, by name."""

    def __init__(self, config: Config):
        self.config = config
        self.networks = {name: networks.load(name) for name in config.networks}

    def names(self) -> list[str]:
        """Costs of each network at each batch, the compiler's word, the measurement."""
        costs = [f"{name}/{b}" for name in self.config.networks for b in self.config.batches]
        real = [name for name in self.config.networks if name not in networks.SIZES]
        return [*costs, *(f"{name}/compiled" for name in real), "measured"]

    def mark(self) -> str:
        """Fingerprint of the run: its config, and the numbers of the chips."""
        chips = [dataclasses.asdict(chip) for chip in hardware.CHIPS]
        return store.fingerprint(dataclasses.asdict(self.config), chips)

    def measure(self, part: str) -> tuple[dict[str, Any], Any]:
        """Return (arrays, rows) of one part."""
        c = self.config
        if part == "measured":
            network = self.networks[c.networks[0]]
            arrays, row = parts.measured(network, c.measured_batch, c.num_rounds)
            return arrays, [_said(part, c.networks[0], labels.Kind.MEASURED) | row]
        name, _, what = part.rpartition("/")
        if what == "compiled":
            row = parts.compiled(self.networks[name])
            return {}, [_said(what, name, labels.Kind.COMPILED) | row]
        arrays, rows = parts.costs(self.networks[name], int(what))
        return arrays, [_said("costs", name, labels.Kind.PREDICTED) | r for r in rows]


def _said(part: str, network: str, kind: labels.Kind) -> dict[str, Any]:
    return {"part": part, "network": network, "kind": str(kind)}


def run(config: Config, **options):
    """Return arrays and rows; touches no file. Options as `command.parts`.

    Arrays "<network>/<batch>/...", see `hardware_cost_parts.costs`, and "measured/...", see
    `hardware_cost_parts.measured`; `precisions` [P] and `chips` [C] name their axes.
    """
    check(config)
    study = Study(config)
    found = command.parts(study.names(), study.measure, study.mark(), **options)
    axes = {"precisions": list(parts.PRECISIONS), "chips": [c.name for c in hardware.CHIPS]}
    return command.by_part(found) | axes, [row for _, rows in found.values() for row in rows]


EXPERIMENT = command.Experiment(
    "hardware_cost", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the tables, write results and the figures."""
    return command.main(EXPERIMENT, argv)
