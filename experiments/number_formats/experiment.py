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

from experiments.harness import old_command as command
from experiments.number_formats.data import LAWS, ROW, Config, Pool, tensors
from experiments.number_formats.formats import ENTRIES, FAMILIES, Entry
from qdiffjax import compiling
from qdiffjax.quant import noise
from qdiffjax.quant.formats.blocks import BlockFormat, block_scale, nvfp4_scale
from qdiffjax.quant.qtensor import quantization_error

RATIOS = np.geomspace(1.0, 1 / 8, 18)  # of the full range


HELP = {
    "checkpoint": "folder or shipped name",
    "num_steps": "sampler steps",
    "steps": "to read activations at",
    "num_samples": "samples",
    "num_elements": "read of each activation operand, at most",
    "num_random": "of each law",
    "families": f"formats, of {', '.join(FAMILIES)}",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if not all(0 <= s < config.num_steps for s in config.steps):
        raise ValueError(f"steps: got {config.steps}, expected 0..{config.num_steps - 1}.")
    if min(config.num_samples, config.num_elements // ROW, config.num_random // ROW) < 1:
        raise ValueError(f"expected at least 1 sample and {ROW} elements.")
    unknown = set(config.families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"got formats {sorted(unknown)}, expected some of {', '.join(FAMILIES)}.")


def grids(entry: Entry, pool: Pool) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales to try [tries, R, 1], and zero points if affine; of blocks [1, R, blocks]."""
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
    """Scale of each block [R, blocks], NVFP4's with the largest number of its tensor."""
    if format.scale_fn is nvfp4_scale:
        top = np.zeros(len(pool.tensors))
        np.maximum.at(top, pool.tensor, np.abs(pool.x).max(1))
        by_row = jnp.asarray(top[pool.tensor][:, None], jnp.float32)
        rule = functools.partial(nvfp4_scale, tensor_absmax=by_row)
        format = dataclasses.replace(format, scale_fn=rule)
    return np.asarray(block_scale(jnp.asarray(pool.x), format), np.float64)


def measure(entry: Entry, pool: Pool):
    """Mean squared errors [tensors], with the scale [R, ...] and zero point that are best."""
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


def predict(entry: Entry, pool: Pool, scale, zero) -> np.ndarray:
    """Predicted mean squared errors [tensors]: from the law, or from a histogram."""
    found = []
    for i, t in enumerate(pool.tensors):
        rows = pool.tensor == i
        if t.source in LAWS and isinstance(entry.format, BlockFormat):
            rule = entry.format.scale_fn
            if rule is nvfp4_scale:
                top = jnp.asarray(np.abs(pool.x[rows]).max())
                rule = functools.partial(nvfp4_scale, tensor_absmax=top)
            format = dataclasses.replace(entry.format, scale_fn=rule)
            found.append(noise.predict_blocks(format, LAWS[t.source]).mse)
        elif t.source in LAWS:
            middle = 0 if zero is None else float(zero[rows][0, 0])
            step = float(scale[rows][0, 0])
            law = LAWS[t.source]
            found.append(noise.predict(entry.element, step, law, zero_point=middle).mse)
        else:
            real = pool.is_real[rows]
            grid = [None if a is None else np.repeat(a[rows], ROW // a.shape[1], 1)[real]
                    for a in (scale, zero)]  # fmt: skip
            x = pool.x[rows][real]
            found.append(noise.predict_error(x, *grid, format=entry.element).mse)
    return np.array(found)


def summarize(entry: Entry, pool: Pool, measured, predicted) -> Iterator[dict]:
    """Rows for each source: SQNR over all its numbers, and the ratios predicted / measured."""
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

    pool = Pool(list(tensors(config)))
    entries = [e for e in ENTRIES if e.family in config.families]
    measured: list[np.ndarray] = []
    predicted: list[np.ndarray] = []
    rows: list[dict] = []
    for entry in tqdm(entries, disable=not progress, unit="format"):
        errors, scale, zero = measure(entry, pool)
        forecast = predict(entry, pool, scale, zero)
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


def print_rows(rows) -> None:
    """Print a line a format and source."""
    print(f"{'SQNR, dB':>18} {'format':14} bits  measured predicted   MSE ratio (tensors), in 5 %")
    for r in rows:
        print(f"{r['source']:>18} {r['format']:14} {r['bits']:5.2f} {r['sqnr_measured_db']:8.2f} "
              f"{r['sqnr_predicted_db']:9.2f}   {r['predicted_over_measured']:.3f} "
              f"({r['ratio_min']:.3f} to {r['ratio_max']:.3f}) "
              f"{r['within_5_percent']:.0%}")  # fmt: skip


EXPERIMENT = command.Experiment(
    "number_formats", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)
