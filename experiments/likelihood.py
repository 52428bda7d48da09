"""Bits per dimension that trained networks give to held-out images, by the probability-flow ODE.

    python -m experiments.likelihood --data /usr/share/datasets/fashion-mnist

Two numbers for each image, in full precision. The network knows noise levels down to sigma_min
(in units of the signal) and its density p_min is that of data with that much noise.

  bound         an upper bound of the code length of the pixels: x_min is the image with that
                noise, and  -log2 P(image) <= -log2 p_min(x_min) - log2 P(image | x_min)
                + log2 q(x_min | image)  in the mean, with P(image | x_min) the Gaussian around
                the network's x_0 with the deviation sigma_min, summed over each pixel's bin
                (Ho et al. 2020, eq. 13)
  dequantized   the customary number: p_min at the image plus uniform noise of one bin. No bound,
                in either direction, where sigma_min is not small beside a bin: the image lacks the
                noise of which p_min is the density, and flat regions pay for it

The trace is Hutchinson's with one probe an image: unbiased, its noise is part of the standard
error, which is over images. An exact solver is assumed; `solver_shift` says what half the number
of intervals changes. Both are of the full-precision network: automatic differentiation of a
quantized one sees a divergence of zero and gives the likelihood of no model at all.
"""

import dataclasses
import functools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import old_command as command
from experiments.harness import subject
from qdiffjax import compiling, diffusion
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks import data, denoisers

BIN = 2 / 255  # of a pixel in [-1, 1]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the flags of the command line."""

    checkpoints: tuple[str, ...] = ("fashion_unet", "fashion_dit")
    data: str = "/usr/share/datasets/fashion-mnist"
    num_images: int = 96
    num_steps: int = 48
    batch: int = 32
    sigma_min: float = 0.01
    sigma_max: float = 150.0
    seed: int = 0


HELP = {
    "checkpoints": "folders or shipped names",
    "data": "folder, file or name of images; their test split is read",
    "num_images": "held-out images, drawn at random",
    "num_steps": "Runge-Kutta intervals, equispaced in log-SNR; four network calls each",
    "batch": "images at a time",
    "sigma_min": "lowest noise level, sigma / alpha; 0.01 is time 1 of the linear schedule",
    "sigma_max": "highest noise level, all but pure noise",
    "seed": "of images, noise and probes",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if config.num_images < 2 or config.num_steps < 2 or config.batch < 1:
        raise ValueError("expected at least 2 images, 2 steps and batches of 1.")
    if not 0 < config.sigma_min < config.sigma_max:
        raise ValueError(f"got sigma from {config.sigma_min} to {config.sigma_max}, expected "
                         "0 < sigma_min < sigma_max.")  # fmt: skip


def log_pixels(image, mean, std):
    """Return log P(image) [batch]: the bin of each pixel under N(mean, std^2), outer ones open."""
    normal = jax.scipy.stats.norm
    low = jnp.where(image < -1 + BIN / 2, -jnp.inf, (image - BIN / 2 - mean) / std)
    high = jnp.where(image > 1 - BIN / 2, jnp.inf, (image + BIN / 2 - mean) / std)
    # Of the two tails the smaller one is known to more digits.
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    logs = normal.logcdf(high) + jnp.log1p(-jnp.exp(normal.logcdf(low) - normal.logcdf(high)))
    return jnp.sum(logs, axis=tuple(range(1, image.ndim)))


def grids(process, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Ascending times [num_steps + 1], and those of half as many intervals, every one of which is
    followed by one of no width: both grids are one shape, so one compilation.
    """  # fmt: skip
    last, first = process.time(-2 * np.log([config.sigma_max, config.sigma_min]))
    times = diffusion.log_snr_times(process, last, first, config.num_steps)[::-1]
    return times, times[np.minimum((np.arange(times.size) + 1) // 2 * 2, times.size - 1)]


def bits(denoiser: Denoiser, config: Config):
    """Return fn(params, image, label, key, times) -> (bound, dequantized), each [batch]."""
    process, eps_fn = subject.continuous(denoiser)
    level = process.exact(grids(process, config)[0][0])
    alpha, sigma = (jnp.float32(leaf) for leaf in level)
    size = math.prod(denoiser.config.shape)

    def run(params, image, label, key, times):
        condition = () if label is None else (label,)
        keys = jax.random.split(key, 3)
        noise = jax.random.normal(keys[0], image.shape, image.dtype)
        spread = BIN * (jax.random.uniform(keys[1], image.shape, image.dtype) - 0.5)
        probes = jax.random.rademacher(keys[2], (1, *image.shape), image.dtype)

        def log_prob(x):
            return diffusion.log_likelihood(
                lambda p, x, t: eps_fn(p, x, t, *condition), params, process, x, times,
                probes=probes,
            ).log_prob  # fmt: skip

        x = alpha * image + sigma * noise
        # Both densities in one loop, so that the program holds one copy of the network.
        noisy, plain = jax.lax.map(log_prob, jnp.stack([x, image + spread]))
        eps = eps_fn(params, x, times[0], *condition)
        decoded = log_pixels(image, (x - sigma * eps) / alpha, sigma / alpha)
        axes = tuple(range(1, image.ndim))
        constant = size * (math.log(2 * math.pi) / 2 + jnp.log(sigma))
        entropy = jnp.sum(noise**2, axis=axes) / 2 + constant
        return (
            diffusion.bits_per_dim(noisy + decoded + entropy, size),
            diffusion.bits_per_dim(plain, size, BIN),
        )

    return compiling.compiled(run)


def held_out(config: Config, shape) -> tuple[np.ndarray, np.ndarray | None]:
    """Images [num_images, *shape] drawn from the test split, and their labels.

    Raises:
      ValueError: images of another shape, or too few.
    """
    found = data.load(config.data, "test")
    if found.images.shape[1:] != tuple(shape):
        raise ValueError(f"got images of shape {found.images.shape[1:]} in {config.data}, expected "
                         f"{tuple(shape)}, which the network was trained on.")  # fmt: skip
    if len(found.images) < config.num_images:
        raise ValueError(f"got {config.num_images} images to read, expected at most "
                         f"{len(found.images)}, which {config.data} holds.")  # fmt: skip
    rows = np.random.default_rng(config.seed).permutation(len(found.images))[: config.num_images]
    return found.images[rows], None if found.labels is None else found.labels[rows]


def measure(name: str, config: Config, show) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the bits of every image and the row of one checkpoint.

    Raises:
      ValueError: a checkpoint of latents, or classes without labels.
    """
    denoiser = denoisers.load(denoisers.find_checkpoint(name))
    if denoiser.codec is not None:
        raise ValueError(f"{name} is a denoiser of latents, whose density is not one of images; "
                         "expected a denoiser of images.")  # fmt: skip
    images, labels = held_out(config, denoiser.config.shape)
    if not denoiser.config.num_classes:
        labels = None
    elif labels is None:
        raise ValueError(f"{name} knows classes, but {config.data} has no labels.")
    key, fn = jax.random.key(config.seed), bits(denoiser, config)
    process, _ = subject.continuous(denoiser)
    fine, coarse = (jnp.asarray(grid, jnp.float32) for grid in grids(process, config))

    def part(times, start):
        # The last batch wraps around: one shape, one compilation.
        rows = np.arange(start, start + config.batch) % len(images)
        label = None if labels is None else jnp.asarray(labels[rows])
        image, step_key = jnp.asarray(images[rows]), jax.random.fold_in(key, start)
        return np.stack(fn(denoiser.params, image, label, step_key, times))

    starts = range(0, len(images), config.batch)
    found = [part(fine, start) for start in show(starts, desc=name)]
    shift = np.max(np.abs(part(coarse, 0) - found[0]))
    bound, dequantized = np.concatenate(found, axis=1)[:, : len(images)]
    row = {"checkpoint": name, "conditional": labels is not None, "images": len(images)}
    for column, values in (("bound", bound), ("dequantized", dequantized)):
        row[column] = float(np.mean(values))
        row[f"{column}_standard_error"] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    row |= {"solver_shift": float(shift), "nfe": 4 * config.num_steps}
    return {f"{name}/bound": bound, f"{name}/dequantized": dequantized}, row


def run(config: Config, *, progress: bool = False):
    """Return arrays `<checkpoint>/bound` and `/dequantized` [num_images], and rows."""
    from tqdm import tqdm

    check(config)
    show = functools.partial(tqdm, disable=not progress, unit="batch")
    arrays: dict[str, np.ndarray] = {}
    rows: list[dict] = []
    for name in config.checkpoints:
        found, row = measure(name, config, show)
        arrays |= found
        rows.append(row)
    return arrays, rows


def print_rows(rows) -> None:
    """Print bits per dimension and their standard error."""
    lines = [f"{'checkpoint':<24}{'bound':>16}{'dequantized':>20}{'images':>8}{'solver':>10}"]
    for r in rows:
        cells = [f"{r[c]:.3f} ± {r[c + '_standard_error']:.3f}" for c in ("bound", "dequantized")]
        lines.append(f"{r['checkpoint']:<24}{cells[0]:>16}{cells[1]:>20}{r['images']:>8}"
                     f"{r['solver_shift']:>10.1e}")  # fmt: skip
    print("\n".join([*lines, "bits per dimension, lower is better"]))


EXPERIMENT = command.Experiment(
    "likelihood", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
