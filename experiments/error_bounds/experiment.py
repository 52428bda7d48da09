"""Quantization error of a trained denoiser: measured, predicted, attributed and bounded.

    python -m experiments.error_bounds                               the shipped network
    python -m experiments.error_bounds --weight-bits 4 --activation-bits 8 6 4
    python -m experiments.error_bounds --sites '*'                   the last convolution too
    python -m experiments.error_bounds --sites 'mid_*' '!*time*'     quantize some sites only
    python -m experiments.error_bounds --model mine.networks:make    your own network
    python -m experiments.error_bounds --quick                       a look, in about two minutes

By default all sites but the last convolution are quantized, the input x_t and the output eps
included. Rounding the few weights of that one convolution costs more than all others together at 8
bits: --sites '*' shows it.

One row per pair of widths. Both runs of a pair share their noise, so the error is a difference on
one noise path. The columns:

  RMSE        measured: root mean square of quantized minus full-precision final samples
  predicted   the same, the quantized sampler never run (a-priori local errors, injected)
  bounded     the tighter bound (named below) of the RMSE of the bounded samples, over that RMSE
  hold        whether no bound was violated by any sample at any step
  defect      what the attribution ledger leaves unexplained, relative, median over samples
  path KL     nats, between the reverse chains of the eta = 1 companion sampler, last step left out,
              which is all of a single step's
  W2          bracket of the Wasserstein distance of the final samples: lower, upper

Below it the 95 % interval of predicted / measured over samples; both bounds over the error of each
sample; what kind of bound each is and what it assumes; and the (site, steps) cells that cost most.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.error_bounds import measure, plots, table
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import comparisons, labels, results
from qdiffjax._cells import top_cells
from qdiffjax._checks import require
from qdiffjax.analysis import divergences
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.compiling import compiled
from qdiffjax.precision import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the command line is made from it. Sample counts are capped at num_samples."""

    checkpoint: str = subject.checkpoint()
    model: str = option(
        "", "Your own network instead: package.module:make, a function that returns a "
        "qdiffjax.Denoiser, or the denoiser itself.",
    )  # fmt: skip
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(50, "Steps of the sampler.", least=1)
    num_samples: int = option(128, "Samples of the RMSE, KL and W2 columns.", least=2)
    weight_bits: tuple[int, ...] = option(
        (8, 4), "Weight widths, 1 to 16, one per row.", each=check_bits, repeats=True
    )
    activation_bits: tuple[int, ...] = option(
        (8,), "Activation widths, 1 to 16, one per row or one for all.", each=check_bits,
        repeats=True,
    )  # fmt: skip
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST,
        "Globs of sites to quantize; '!glob' takes some away again, '!last' the last layer.",
    )
    edge_margin: float = option(
        1.2,
        "Factor on the calibrated ranges of the network's input and output; with 1 the outermost "
        "pixels of noise are clipped, which `experiments.clipping` studies.",
        above=0,
    )
    seed: int = command.seed()
    num_ledger_samples: int = option(32, "Samples of the ledger.", least=2)
    num_bound_samples: int = option(8, "Samples whose bounds are checked.", least=2)
    num_fan_samples: int = option(
        8, "Samples of the exact fan, whose cost is quadratic in steps; 0 leaves it out.", least=0
    )
    max_fan_steps: int = option(20, "Most steps of the fan's own grid.", least=1)
    max_nodes: int = option(
        7,
        "Most quadrature nodes of the ledger (1, 3, 7, 15), added while the defect is large.",
        least=1,
        most=15,
    )
    tolerance: float = option(1e-3, "Defect of the ledger that is good enough.", least=0)

    def check(self) -> None:
        """Refuse two lists of widths that cannot be paired; raises ValueError."""
        w, a = len(self.weight_bits), len(self.activation_bits)
        require(w and a and {w, a} <= {1, max(w, a)},
                got=f"{w} weight widths and {a} activation widths",
                expected="equal numbers or one for all",
                remedy="one width of each for every row, or one for all")  # fmt: skip

    def widths(self) -> list[tuple[int, int]]:
        """Return pairs of weight and activation bits, a single one serving all."""
        w, a = self.weight_bits, self.activation_bits
        size = max(len(w), len(a))
        return list(zip(w * (size // len(w)), a * (size // len(a)), strict=True))


QUICK = {"num_steps": 10, "num_samples": 16, "weight_bits": (8, 4), "num_ledger_samples": 8,
         "num_bound_samples": 4, "num_fan_samples": 0}  # fmt: skip
BOUNDS = {
    "Grönwall": labels.label(pathwise.gronwall),
    "remainder bound": labels.label(pathwise.remainder_bound),
    "path KL": labels.label(divergences.path_kl),
    "W2 upper": labels.label(divergences.w2_coupling),
    "W2 lower": labels.label(divergences.w2_lower),
}


def run(config: Config, *, progress: bool = False, keep: Callable | None = None,
        kept: Callable | None = None):  # fmt: skip
    """Measure every width; touches no file.

    Args:
      config: what to run.
      progress: show a progress bar for every width.
      keep, kept: see `command.parts`.

    Returns:
      arrays: common ones, and those of each width under "W8A8/name"; rows: the table.
    """
    full = measure.prepare(config)
    sample = compiled(lambda q, x, xs: comparisons.measured(q, x, xs, full.steps, key=full.key))
    columns = measure.columns(config, full)
    widths = {f"W{weight}A{activation}": (weight, activation)
              for weight, activation in config.widths()}  # fmt: skip

    def measure_width(name: str):
        weight_bits, activation_bits = widths[name]
        row: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        arrays: dict[str, np.ndarray] = {}
        start = time.perf_counter()
        q = full.subject.quantized(weight_bits, activation_bits)
        pair = sample(q, full.x_T, full.run.states)
        with tqdm(columns.items(), disable=not progress, unit="column") as bar:
            for column_name, column in bar:
                bar.set_description(f"{name} {column_name}")
                new_arrays, new_row = column(q, pair)
                arrays |= {key: np.asarray(value) for key, value in new_arrays.items()}
                row |= {key: value if isinstance(value, str) else np.asarray(value).item()
                        for key, value in new_row.items()}  # fmt: skip
        return arrays, row | {"seconds": time.perf_counter() - start}

    mark = results.fingerprint(
        {name: value for name, value in dataclasses.asdict(config).items()
         if name not in ("weight_bits", "activation_bits")}, full.subject.mark(),
    )  # fmt: skip
    done = command.parts(widths, measure_width, mark, keep=keep, kept=kept)
    rows = []
    for arrays, row in done.values():
        cells = top_cells(arrays["ledger"], arrays["sites"])
        rows.append(row | {"top_cells": [cell._asdict() for cell in cells]})
    return measure.common(full) | command.by_part(done), rows


EXPERIMENT = command.experiment(
    Config, run, plots=plots, table=functools.partial(table.main_table, bounds=BOUNDS), quick=QUICK,
    notes={"bounds": {name: label._asdict() for name, label in BOUNDS.items()}},
)  # fmt: skip
