"""Every number format on numbers of four kinds: signal to quantization noise, against bits.

    python -m experiments.number_formats

  gaussian, laplace    samples, with the scale that theory calls best; predicted from the law
  weights              of the network's sites, a scale for each output channel
  activations          that the sites multiply, at a few steps of a DDIM run, a scale for each
                       operand and step

Scales on weights and activations have the least error among shrunken ranges; formats with a scale
for each block compute their own. There the prediction is made from histograms of x / scale, which
represent tensors of at most 1024 distinct numbers exactly.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.number_formats import plots
from experiments.number_formats.data import LAWS, ROW, Pool, pooled, tensors
from experiments.number_formats.formats import ENTRIES, FAMILIES, Entry
from qdiffjax import compiling
from qdiffjax._checks import require
from qdiffjax.quant import BlockFormat, block_scale, noise, nvfp4_scale, quantization_error

RATIOS = np.geomspace(1.0, 1 / 8, 18)  # of the full range


@dataclasses.dataclass(frozen=True)
class Config:
    """What to quantize."""

    checkpoint: str = subject.checkpoint()
    num_steps: int = option(50, "Steps of DDIM.", least=1)
    steps: tuple[int, ...] = option((0, 25, 49), "Steps to read activations at.", least=0)
    num_samples: int = option(8, "Number of samples.", least=1)
    num_elements: int = option(
        8192, "Elements read of each activation operand, at most.", least=ROW
    )
    num_random: int = option(2**18, "Samples of each law.", least=ROW)
    families: tuple[str, ...] = option(FAMILIES, "Formats to compare.", choices=FAMILIES)
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse steps beyond the last one."""
        require(max(self.steps) < self.num_steps, got=f"steps {self.steps}",
                expected=f"0..{self.num_steps - 1}",
                remedy="choose steps of the sampler")  # fmt: skip


def grids(entry: Entry, pool: Pool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return scales to try [tries, R, 1], of blocks [1, R, blocks]; zero points if affine."""
    if isinstance(entry.format, BlockFormat):
        return block_scales(entry.format, pool)[None], None
    high = pool.over_channels(pool.x.max(1), np.maximum) * RATIOS[:, None]
    low = pool.over_channels(pool.x.min(1), np.minimum) * RATIOS[:, None]
    if entry.is_affine:
        scale = np.maximum((high - low) / entry.format.high, 1e-30)
        zero = np.round(-low / scale)
    else:
        scale, zero = np.maximum(np.maximum(high, -low) / entry.format.high, 1e-30), None
    for i, t in enumerate(pool.tensors):
        if t.source in LAWS:
            rows = pool.tensor == i
            middle = entry.format.high // 2 + 1 if entry.is_affine else 0
            law = LAWS[t.source]
            scale[:, rows] = noise.optimal_scale(entry.format, law, zero_point=middle)
            if zero is not None:
                zero[:, rows] = middle
    return scale[..., None], None if zero is None else zero[..., None]


def block_scales(format: BlockFormat, pool: Pool) -> np.ndarray:
    """Return the scale of each block [R, blocks]."""
    top = np.zeros(len(pool.tensors))
    np.maximum.at(top, pool.tensor, np.abs(pool.x).max(1))
    format = with_absmax(format, top[pool.tensor][:, None])
    return np.asarray(block_scale(jnp.asarray(pool.x), format), np.float64)


def with_absmax(format: BlockFormat, absmax) -> BlockFormat:
    """Return the format with the largest number of the tensor, which NVFP4's scales need."""
    if format.scale_fn is not nvfp4_scale:
        return format
    rule = functools.partial(nvfp4_scale, tensor_absmax=jnp.asarray(absmax, jnp.float32))
    return dataclasses.replace(format, scale_fn=rule)


def measure(entry: Entry, pool: Pool):
    """Return mean squared errors [tensors], and the best scale [R, ...] and zero point."""
    scale, zero = grids(entry, pool)

    @compiling.compiled
    def squared_errors(x, grid):
        def one(grid):
            e = quantization_error(x, *grid, format=entry.element)
            return jnp.sum(jnp.where(pool.is_real, e, 0) ** 2, 1)

        return jax.lax.map(one, grid)

    grid = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (scale, zero))
    sums = np.asarray(squared_errors(jnp.asarray(pool.x), grid), np.float64)
    by_channel = np.stack([pool.over_channels(row, np.add) for row in sums])
    best, rows = np.argmin(by_channel, 0), np.arange(len(pool.x))
    used = [None if a is None else np.asarray(a, np.float64)[best, rows] for a in grid]
    return pool.mean(sums[best, rows]), *used


def predict(entry: Entry, pool: Pool, i: int, scale, zero):
    """Return the predicted mean squared error of tensor i, from its law or a histogram."""
    rows, law = pool.tensor == i, LAWS.get(pool.tensors[i].source)
    if law is None:
        real = pool.is_real[rows]
        grid = [None if a is None else np.repeat(a[rows], ROW // a.shape[1], 1)[real]
                for a in (scale, zero)]  # fmt: skip
        return noise.predict_error(pool.x[rows][real], *grid, format=entry.element).mse
    if isinstance(entry.format, BlockFormat):
        format = with_absmax(entry.format, np.abs(pool.x[rows]).max())
        return noise.predict_blocks(format, law).mse
    middle = 0 if zero is None else float(zero[rows][0, 0])
    step = float(scale[rows][0, 0])
    return noise.predict(entry.element, step, law, zero_point=middle).mse


def summarize(entry: Entry, pool: Pool, measured, predicted) -> Iterator[dict]:
    """Yield a row for each source: SQNR over all its numbers, and predicted over measured."""
    sizes = pool.sizes()
    for source in dict.fromkeys(t.source for t in pool.tensors):
        here = np.array([t.source == source for t in pool.tensors])
        total = lambda v, here=here: float(np.sum((v * sizes)[here]))  # noqa: E731
        ratios = (predicted / measured)[here]
        yield {
            "source": source, "family": entry.family, "format": entry.name, "bits": entry.bits,
            "sqnr_measured_db": 10 * np.log10(total(pool.signal) / total(measured)),
            "sqnr_predicted_db": 10 * np.log10(total(pool.signal) / total(predicted)),
            "predicted_over_measured": total(predicted) / total(measured),
            "ratio_min": float(ratios.min()), "ratio_max": float(ratios.max()),
            "within_5_percent": float(np.mean(np.abs(ratios - 1) < 0.05)),
            "tensors": int(here.sum()),
        }  # fmt: skip


def run(config: Config, *, progress: bool = False):
    """Return arrays and rows.

    Arrays: `measured` and `predicted` mean squared errors, `signal` mean squares, each
    [formats, tensors] or [tensors]; `formats`, `sources`, `tensors`: their names. Rows: one for
    each (format, source).
    """
    from tqdm import tqdm

    pool = pooled(list(tensors(config)))
    entries = [e for e in ENTRIES if e.family in config.families]
    measured, predicted = [], []
    rows: list[dict] = []
    for entry in tqdm(entries, disable=not progress, unit="format"):
        errors, *grid = measure(entry, pool)
        forecast = np.array([predict(entry, pool, i, *grid) for i in range(len(pool.tensors))])
        measured.append(errors)
        predicted.append(forecast)
        rows.extend(summarize(entry, pool, errors, forecast))
    arrays = {
        "measured": np.array(measured, np.float32), "predicted": np.array(predicted, np.float32),
        "signal": pool.signal.astype(np.float32), "formats": np.array([e.name for e in entries]),
        "sources": np.array([t.source for t in pool.tensors]),
        "tensors": np.array([t.name for t in pool.tensors]),
    }  # fmt: skip
    return arrays, rows


EXPERIMENT = command.experiment(Config, run, plots=plots)
