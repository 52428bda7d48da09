"""What precision costs: bytes, multiplications, time and energy of networks, site by site.

    python -m experiments.hardware_cost

Bytes, MACs and bit-operations are counted, and hold for any machine that packs codes. Times on
chips are predicted: rooflines of the products alone, each operand read from memory once. Energy is
predicted for 45 nm arithmetic and HBM2. The last layer stays in full precision. DiT-XL/2 is known
by its shapes; it has no weights here. Then XLA's own count of the float32 networks, and a call of
the first network on this machine beside the roofline of its measured peak and bandwidth.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax

from experiments.hardware_cost import measure, plots
from experiments.harness import command, networks, subject
from experiments.harness.command import option
from qdiffjax import hardware, results
from qdiffjax._checks import require


def check_network(name: str) -> None:
    """Refuse what is neither a checkpoint nor one of the sizes; raises FileNotFoundError."""
    if name not in networks.SIZES:
        subject.check_checkpoint(name)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    networks: tuple[str, ...] = option(
        ("fashion_unet", "fashion_dit", "dit_xl_2"),
        f"Checkpoints, or any of {', '.join(networks.SIZES)}; the first one is measured.",
        each=check_network,
    )
    batches: tuple[int, ...] = option((1, 64), "Samples of a call.", least=1)
    measured_batch: int = option(64, "Samples of the call that is measured.", least=1)
    num_rounds: int = option(100, "Number of times that it is measured.", least=1)

    def check(self) -> None:
        """Refuse to measure a network that has no weights."""
        require(self.networks[0] not in networks.SIZES, "the first network", got=self.networks[0],
                expected="a checkpoint",
                remedy="it has no weights to measure; put a checkpoint first")  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows; touches no file. Options as `command.parts`.

    Arrays "<network>/<batch>/...", see `measure.costs`, and "measured/...", see
    `measure.measured`; `precisions` [P] and `chips` [C] name their axes.
    """
    loaded = {name: networks.load(name) for name in config.networks}
    parts: dict[str, Callable] = {
        f"{name}/{b}": partial(measure.costs, name, network, b)
        for name, network in loaded.items()
        for b in config.batches
    }
    real = [name for name in loaded if name not in networks.SIZES]
    parts |= {f"{name}/compiled": partial(measure.compiled, name, loaded[name]) for name in real}
    first, batch = config.networks[0], config.measured_batch
    parts["measured"] = partial(measure.measured, first, loaded[first], batch, config.num_rounds)
    chips = [dataclasses.asdict(chip) for chip in hardware.CHIPS]
    shapes = [jax.tree.map(lambda a: (str(a.dtype), a.shape), jax.tree.leaves(network.params))
              for network in loaded.values()]  # fmt: skip
    mark = results.fingerprint(dataclasses.asdict(config), chips, shapes)
    done = command.parts(parts, lambda part: parts[part](), mark, **options)
    axes = {"precisions": list(measure.PRECISIONS), "chips": [c.name for c in hardware.CHIPS]}
    return command.by_part(done) | axes, [row for _, rows in done.values() for row in rows]


EXPERIMENT = command.experiment(Config, run, plots=plots)
