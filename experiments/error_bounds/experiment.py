"""Quantization error of a trained denoiser: measured, predicted, attributed and bounded.

    python -m experiments.error_bounds                               the shipped network
    python -m experiments.error_bounds --weight-bits 4 --activation-bits 8 6 4
    python -m experiments.error_bounds --sites '*'                   the last convolution too
    python -m experiments.error_bounds --sites 'mid_*' '!*time*'     quantize some sites only
    python -m experiments.error_bounds --quick                       a look, in about a minute

By default all sites but the last convolution are quantized, the input x_t and the output eps
included. Rounding the few weights of that one convolution costs more than all others together at 8
bits: --sites '*' shows it.

One row per pair of widths. Both runs of a pair share their noise, so the error is a difference on
one noise path. The columns:

  RMSE        measured: root mean square of quantized minus full-precision final samples
  predicted   the same, the quantized sampler never run (a-priori local errors, injected)
  1st order   relative error of first-order propagation of the measured local errors, median
  defect      what the attribution ledger leaves unexplained, relative, median over samples
  bound/err   Groenwall bound over measured error at the end: smallest, and median over samples
  hold        whether no bound was violated by any sample at any step
  path KL     nats, between the reverse chains of the eta = 1 companion sampler, last step left out
  W2          bracket of the Wasserstein distance of the final samples: lower, upper

Below it the 95 % interval of predicted / measured over samples, what kind of bound each is and what
it assumes, and the (site, steps) cells that cost most.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

from experiments.error_bounds import measure as parts
from experiments.error_bounds import plots
from experiments.harness import old_command as command
from experiments.harness import subject, tables
from qdiffjax import labels
from qdiffjax.analysis import divergences
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.precision.recipe import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the command line is made from it. Sample counts are capped at num_samples."""

    checkpoint: str = "fashion_unet"
    sampler: str = "ddim"
    num_steps: int = 50
    num_samples: int = 128
    weight_bits: tuple[int, ...] = (8, 4)
    activation_bits: tuple[int, ...] = (8,)
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    edge_margin: float = 1.2
    seed: int = 0
    num_ledger_samples: int = 32
    num_bound_samples: int = 8
    num_fan_samples: int = 8
    max_fan_steps: int = 20
    max_nodes: int = 4
    tolerance: float = 1e-3


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "sampler": f"one of {', '.join(subject.SAMPLERS)}",
    "num_steps": "sampler steps",
    "num_samples": "samples of the RMSE, KL and W2 columns",
    "weight_bits": "weight widths, 1 to 16, one per row",
    "activation_bits": "activation widths, 1 to 16, one per row or one for all",
    "sites": "globs of sites to quantize; '!glob' takes some away again, '!last' the last layer",
    "edge_margin": "factor on the calibrated ranges of the network's input and output; with 1 the "
    "outermost pixels of noise are clipped, which `experiments.clipping` studies",
    "seed": "of everything random",
    "num_ledger_samples": "samples of the ledger",
    "num_bound_samples": "samples whose bounds are checked",
    "num_fan_samples": "samples of the exact fan, whose cost is quadratic in steps",
    "max_fan_steps": "most steps of the fan's own grid",
    "max_nodes": "most quadrature nodes of the ledger, 2 to 8; raised while the defect is large",
    "tolerance": "defect of the ledger that is good enough",
}
QUICK = {"num_steps": 10, "num_samples": 16, "weight_bits": (8, 4), "num_ledger_samples": 8,
         "num_bound_samples": 4, "num_fan_samples": 2, "max_fan_steps": 5}  # fmt: skip


def widths(config: Config) -> list[tuple[int, int]]:
    """Pair the widths, a single one serving all.

    Raises:
      ValueError: a width outside 1..16, or two lists of different lengths.
    """
    w, a = list(config.weight_bits), list(config.activation_bits)
    for bits in (*w, *a):
        check_bits(bits)
    size = max(len(w), len(a))
    if not w or not a or {len(w), len(a)} - {1, size}:
        raise ValueError(
            f"got {len(w)} weight widths and {len(a)} activation widths, expected equal numbers "
            "or one for all."
        )
    return list(zip(w * (size // len(w)), a * (size // len(a)), strict=True))


def check(config: Config) -> None:
    """Refuse what cannot work, before anything long starts; raises ValueError or OSError."""
    widths(config)
    if config.sampler not in subject.SAMPLERS:
        raise ValueError(f"no sampler {config.sampler!r}; expected {', '.join(subject.SAMPLERS)}.")
    for name in ("num_samples", "num_ledger_samples", "num_bound_samples", "num_fan_samples"):
        if getattr(config, name) < 2:
            raise ValueError(f"got {name} = {getattr(config, name)}, expected at least 2.")
    if not config.edge_margin > 0:
        raise ValueError(f"got edge_margin = {config.edge_margin}, expected a positive factor.")
    for name in ("num_steps", "max_fan_steps", "max_nodes"):
        if getattr(config, name) < 1:
            raise ValueError(f"got {name} = {getattr(config, name)}, expected at least 1.")


def run(config: Config, *, progress: bool = False, keep: Callable | None = None,
        kept: Callable | None = None):  # fmt: skip
    """Measure every width; touches no file.

    Args:
      config: what to run.
      progress: show a progress bar.
      keep: called as keep(name, mark, arrays, row) when a width is done.
      kept: kept(name, mark) -> (arrays, row) of an earlier run, or None.

    Returns:
      arrays: common ones, and those of each width under "W8A8/name"; rows: the table.
    """
    from tqdm import tqdm

    check(config)
    study = parts.Study(config)
    mark = study.mark()
    bar = tqdm(total=len(widths(config)) * parts.NUM_STAGES, disable=not progress, unit="stage")
    arrays, rows = study.common(), []
    with bar:
        for weight_bits, activation_bits in widths(config):
            name = f"W{weight_bits}A{activation_bits}"
            found = kept(name, mark) if kept else None
            if found is None:
                start = time.perf_counter()
                found = study.measure(weight_bits, activation_bits, _advance(bar, name))
                found[1]["seconds"] = time.perf_counter() - start
                if keep:
                    keep(name, mark, *found)
            else:
                bar.update(parts.NUM_STAGES)
            arrays |= {f"{name}/{key}": value for key, value in found[0].items()}
            cells = tables.top_cells(found[0]["ledger"], found[0]["sites"])
            rows.append(found[1] | {"top_cells": [cell._asdict() for cell in cells]})
    return arrays, rows


def _advance(bar, name: str):
    def stage(what: str):
        bar.set_description(f"{name} {what}")
        bar.update(1)

    return stage


BOUNDS = {
    "Groenwall": labels.label(pathwise.gronwall),
    "remainder bound": labels.label(pathwise.remainder_bound),
    "path KL": labels.label(divergences.path_kl),
    "W2 upper": labels.label(divergences.w2_coupling),
    "W2 lower": labels.label(divergences.w2_lower),
}
EXPERIMENT = command.Experiment(
    "error_bounds", __doc__ or "", Config, HELP, check, run, plots.write,
    functools.partial(tables.error_bounds, bounds=BOUNDS), quick=QUICK,
    notes={"bounds": {name: label._asdict() for name, label in BOUNDS.items()}},
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and figures."""
    return command.main(EXPERIMENT, argv)
