"""The measurements behind `experiments.first_order_failure`."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import store, subject
from qdiffjax import compiling, diffusion
from qdiffjax.analysis.errors import propagation, runs
from qdiffjax.analysis.errors import propagation as curvature
from qdiffjax.precision import full_call, quantized_call
from qdiffjax.precision.recipe import check_bits


def parse_width(text: str) -> tuple[int | None, int | None]:
    """Return the bits of weights and activations in W8, A8 or W8A8; None is full precision.

    Raises:
      ValueError: anything else.
    """
    found = re.fullmatch(r"(?:W(\d+))?(?:A(\d+))?", text)
    if not found or not text:
        raise ValueError(f"got width {text!r}, expected such as W8, A8 or W4A8.")
    weight, activation = (None if bits is None else int(bits) for bits in found.groups())
    for bits in (weight, activation):
        if bits is not None:
            check_bits(bits)
    return weight, activation


class Study:
    """One denoiser and sampler, compiled once for all widths."""

    def __init__(self, config):
        self.config = config
        make = subject.SAMPLERS[config.sampler]
        self.subject = subject.prepare(
            config.checkpoint, lambda s: make(s, config.num_steps), config.sites, config.seed
        )
        denoiser = self.subject.denoiser
        self.steps = make(denoiser.schedule, config.num_steps)
        is_noisy = bool(np.any(np.asarray(self.steps.coeffs.noise) != 0))
        self.key = jax.random.key(config.seed + 1) if is_noisy else None
        self.x_T = subject.noise(denoiser, config.num_samples, config.seed)
        full = diffusion.bind(denoiser.eps_fn, denoiser.params)
        sample = compiling.compiled(
            lambda x: diffusion.sample(full, x, self.steps, key=self.key).states
        )
        self.xs = sample(self.x_T)
        self._both = compiling.compiled(self._compare)

    def mark(self) -> str:
        """Fingerprint of everything but the list of widths."""
        config = dataclasses.asdict(self.config) | {"widths": None}
        return store.fingerprint(config, self.subject.mark())

    def _compare(self, q, xs):
        full, quantized, steps = full_call(q), quantized_call(q), self.steps
        xs_hat = diffusion.sample(quantized, self.x_T, steps, key=self.key).states
        after = runs.local_errors(full, quantized, xs_hat, steps)
        before = runs.local_errors(full, quantized, xs, steps)
        orders = curvature.propagate_second_order(full, xs, steps, before)
        first = propagation.propagate(full, xs, steps, after)[-1]
        error = steps.coeffs.current(xs_hat[-1] - xs[-1])
        miss = steps.coeffs.current(first) - error
        size, miss = (runs.norms(a[None])[0] for a in (error, miss))
        return {
            "measured": miss / size, "predicted": curvature.predicted_failure(orders, steps),
            "errors": size / jnp.sqrt(jnp.asarray(error[0].size, size.dtype)),
        }  # fmt: skip

    def measure(self, width: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, row) of one width."""
        q = self.subject.quantized(*parse_width(width))
        found = jax.device_get(self._both(q, self.xs))
        arrays = {name: np.asarray(value) for name, value in found.items()}
        tolerance = self.config.tolerance
        row = {
            "kind": "width", "width": width, "median_error": float(np.median(arrays["errors"])),
            "measured": float(np.median(arrays["measured"])),
            "predicted": float(np.median(arrays["predicted"])),
            "failed": int(np.sum(arrays["measured"] > tolerance)),
            "foretold": int(np.sum(arrays["predicted"] > tolerance)),
            "right": int(np.sum((arrays["measured"] > tolerance)
                                == (arrays["predicted"] > tolerance))),
            "samples": int(arrays["errors"].size),
        }  # fmt: skip
        return arrays, row


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
