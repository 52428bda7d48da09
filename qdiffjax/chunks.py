"""How many samples fit: bytes of a run, chunks of samples, and the cost of a study in words."""

import math
import os
from typing import Any

import jax

from qdiffjax.diffusion import Steps
from qdiffjax.precision import Quantized

MEMORY_SHARE = 0.2  # of what the device has, for one chunk


def chunks_of(num: int, size: int) -> list[slice]:
    """Return slices of nearly equal length, at most `size`, that cover num samples."""
    size = math.ceil(num / math.ceil(num / max(1, size)))
    return [slice(i, min(i + size, num)) for i in range(0, num, size)]


def fitting(q: Quantized, steps: Steps, elements: int | None = None) -> int:
    """Return how many samples a run may hold at a time; see `bytes_per_sample`."""
    return max(1, int(MEMORY_SHARE * device_memory() / bytes_per_sample(q, steps, elements)))


def elements_of(q: Quantized) -> int:
    """Return the number of elements of all sites' results, of one sample; traces the network."""
    return sum(math.prod(site.out_shape) for site in q.denoiser.sites())


def bytes_per_sample(q: Quantized, steps: Steps, elements: int | None = None) -> int:
    """Return an estimate of a coupled run's bytes for each sample: states and activations.

    States of both runs and predictions at every step, and the results of all sites twice, which
    no compiler keeps at once. Counted from shapes, in float32. `elements` is `elements_of(q)` where
    it is known.
    """
    elements = elements_of(q) if elements is None else elements
    states = (2 * steps.coeffs.num_slots + 1) * (len(steps.t) + 1) * math.prod(q.denoiser.shape)
    return 4 * (states + 2 * elements)


def cost(q: Quantized, steps: Steps, num_samples: int, num_ledger: int, num_bound: int) -> str:
    """Return what a study will cost, in words: sampling runs, operations, memory."""
    runs = 10 * num_samples + 15 * num_ledger + 28 * num_bound
    sites = q.denoiser.sites()
    macs = runs * len(steps.t) * sum(site.macs for site in sites)
    elements = sum(math.prod(site.out_shape) for site in sites)
    size = min(num_samples, fitting(q, steps, elements)) * bytes_per_sample(q, steps, elements)
    return (f"{num_samples} samples, {len(steps.t)} network calls each: the work of about {runs} "
            f"sampling runs of one sample, {macs / 1e12:.3g} TMAC; chunks of up to "
            f"{size / 1e9:.2g} GB; compilation comes first")  # fmt: skip


def device_memory() -> int:
    """Return the bytes that the first device has."""
    stats: Any = jax.devices()[0].memory_stats() or {}
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", pages)
