"""Where the first order of error propagation fails, said beforehand, against what happens.

    python -m experiments.first_order_failure                    the shipped UNet
    python -m experiments.first_order_failure --checkpoint fashion_dit

First order propagates local errors by the Jacobians of the full-precision run. It fails for a
sample when it misses the final error by more than the tolerance, relative to that error:

  measured   |v - delta| / |delta|, v propagated from the local errors of the quantized run
  predicted  |q| / |v|, second over first order, both from the full-precision run and a-priori
             local errors: no quantized sampler runs

One row a width: how many of the samples fail, and how many were predicted to. Then the confusion
table over all widths and samples, and the area under the ROC curve: the probability that a sample
which fails got a larger prediction than one which does not.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.first_order_failure import plots
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import diffusion, results
from qdiffjax.analysis.errors import propagation, runs
from qdiffjax.compiling import compiled
from qdiffjax.precision import check_bits, full_call, quantized_call

WIDTHS = ("W10", "W9", "W8", "W7", "W6", "W5", "A10", "A9", "A8", "A7", "A6", "W8A8", "W6A6")


def parse_width(text: str) -> tuple[int | None, int | None]:
    """Return the bits of weights and activations in W8, A8 or W8A8; None is full precision.

    Raises:
      ValueError: anything else.
    """
    match = re.fullmatch(r"(?:W(\d+))?(?:A(\d+))?", text)
    if not match or not text:
        raise ValueError(f"got width {text!r}, expected such as W8, A8 or W4A8.")
    weight, activation = (check_bits(int(bits) if bits else None) for bits in match.groups())
    return weight, activation


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(20, "Steps of the sampler.", least=2)
    widths: tuple[str, ...] = option(
        WIDTHS,
        "What is rounded to how many bits, such as W8 (weights), A8 (activations), W4A8.",
        each=parse_width,
    )
    num_samples: int = option(32, "Samples of each width.", least=2)
    tolerance: float = option(
        0.25, "Relative error above which first order has failed.", above=0, below=1
    )
    sites: tuple[str, ...] = option(subject.ALL_BUT_LAST, "Globs of the sites to quantize.")
    seed: int = command.seed()


def compare(q, x_T, xs, steps: diffusion.Steps, key) -> dict[str, jax.Array]:
    """Return the relative error of first order, `measured` and `predicted`, and `errors` [samples].

    Args:
      q: the quantized denoiser.
      x_T: initial noise [samples, *shape].
      xs: states of the full-precision run [N+1, samples, *state].
      steps: the sampler.
      key: its noise.
    """
    full, quantized = full_call(q), quantized_call(q)
    xs_hat = diffusion.sample(quantized, x_T, steps, key=key).states
    after = runs.local_errors(full, quantized, xs_hat, steps)
    before = runs.local_errors(full, quantized, xs, steps)
    orders = propagation.propagate_second_order(full, xs, steps, before)
    first = propagation.propagate(full, xs, steps, after)[-1]
    error = steps.coeffs.current(xs_hat[-1] - xs[-1])
    miss = steps.coeffs.current(first) - error
    size, miss = (runs.norms(a[None])[0] for a in (error, miss))
    return {
        "measured": miss / size, "predicted": propagation.predicted_failure(orders, steps),
        "errors": size / jnp.sqrt(jnp.asarray(error[0].size, size.dtype)),
    }  # fmt: skip


def summary(arrays: dict[str, np.ndarray], tolerance: float) -> dict[str, Any]:
    """Return the medians of one width, and how many samples failed and were foretold to."""
    failed, foretold = (arrays[name] > tolerance for name in ("measured", "predicted"))
    return {
        "median_error": float(np.median(arrays["errors"])),
        "measured": float(np.median(arrays["measured"])),
        "predicted": float(np.median(arrays["predicted"])),
        "failed": int(np.sum(failed)), "foretold": int(np.sum(foretold)),
        "right": int(np.sum(failed == foretold)), "samples": int(arrays["errors"].size),
    }  # fmt: skip


def confusion(arrays: dict[str, np.ndarray], tolerance: float) -> dict[str, Any]:
    """Return the confusion table over all widths and samples, and the area under the ROC curve.

    The area is the share of (failed, not failed) pairs in which the failed one has the larger
    prediction, ties counting half (Mann & Whitney 1947); None if a class is empty.
    """
    pooled = [np.concatenate([v for k, v in sorted(arrays.items()) if k.endswith(f"/{name}")])
              for name in ("measured", "predicted")]  # fmt: skip
    measured, predicted = pooled
    failed, foretold = measured > tolerance, predicted > tolerance
    return {
        "kind": "confusion", "tolerance": tolerance,
        "failed_foretold": int(np.sum(failed & foretold)),
        "failed_missed": int(np.sum(failed & ~foretold)),
        "held_foretold": int(np.sum(~failed & foretold)),
        "held_right": int(np.sum(~failed & ~foretold)),
        "accuracy": float(np.mean(failed == foretold)),
        "roc_area": _roc_area(predicted[failed], predicted[~failed]),
    }  # fmt: skip


def _roc_area(positive, negative) -> float | None:
    if not positive.size or not negative.size:
        return None
    gap = positive[:, None] - negative
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def run(config: Config, **options):
    """Return arrays and rows: one row a width, then the confusion table; touches no file.

    Arrays: `<width>/measured`, `<width>/predicted` and `<width>/errors` [samples], the last the
    RMS error of each sample. Options as `command.parts`.
    """
    steps_of = functools.partial(subject.SAMPLERS[config.sampler], num_steps=config.num_steps)
    study, steps, key, x_T, full = subject.run_in_full(config, steps_of)
    both = compiled(lambda q, xs: compare(q, x_T, xs, steps, key))

    def measure(width: str):
        compared = both(study.quantized(*parse_width(width)), full.states)
        arrays = {name: np.asarray(value) for name, value in compared.items()}
        return arrays, {"kind": "width", "width": width} | summary(arrays, config.tolerance)

    mark = results.fingerprint(dataclasses.asdict(config) | {"widths": None}, study.mark())
    done = command.parts(config.widths, measure, mark, **options)
    arrays = command.by_part(done)
    return arrays, [*(row for _, row in done.values()), confusion(arrays, config.tolerance)]


EXPERIMENT = command.experiment(Config, run, plots=plots)
