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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import compiling, diffusion
from qdiffjax._checks import require
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks import data, denoisers

BIN = 2 / 255  # of a pixel in [-1, 1]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the flags of the command line."""

    checkpoints: tuple[str, ...] = option(
        ("fashion_unet", "fashion_dit"), "Folders of checkpoints or names of shipped ones.",
        each=subject.check_checkpoint,
    )  # fmt: skip
    data: str = option(
        "/usr/share/datasets/fashion-mnist",
        "Folder, file or name of images; their test split is read.",
    )
    num_images: int = option(96, "Held-out images, drawn at random.", least=2)
    num_steps: int = option(
        48, "Runge-Kutta intervals, equispaced in log-SNR; four network calls each.", least=2
    )
    batch: int = option(32, "Images at a time.", least=1)
    sigma_min: float = option(
        0.01, "Lowest noise level, sigma / alpha; 0.01 is time 1 of the linear schedule.", above=0
    )
    sigma_max: float = option(150.0, "Highest noise level, all but pure noise.", above=0)
    seed: int = command.seed("Seed of images, noise and probes.")

    def check(self) -> None:
        """Refuse levels that do not descend."""
        require(self.sigma_min < self.sigma_max, expected="sigma_min < sigma_max",
                got=f"sigma from {self.sigma_min} to {self.sigma_max}",
                remedy="swap them")  # fmt: skip


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
    """Return ascending times [num_steps + 1], and those of half as many intervals.

    There, every interval is followed by one of no width: both grids are one shape, so one
    compilation.
    """
    last, first = process.time(-2 * np.log([config.sigma_max, config.sigma_min]))
    times = diffusion.log_snr_times(process, last, first, config.num_steps)[::-1]
    return times, times[np.minimum((np.arange(times.size) + 1) // 2 * 2, times.size - 1)]


def bits(denoiser: Denoiser, config: Config):
    """Return fn(params, image, label, key, times) -> (bound, dequantized), each [batch]."""
    process, eps_fn = subject.continuous(denoiser)
    level = process.exact(grids(process, config)[0][0])
    alpha, sigma = (jnp.float32(leaf) for leaf in level)
    size = math.prod(denoiser.shape)

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


def held_out(config: Config, shape) -> data.Dataset:
    """Return images [num_images, *shape] drawn from the test split, and their labels.

    Raises:
      ValueError: images of another shape, or too few.
    """
    dataset = data.load(config.data, "test", shape)
    num_images = len(dataset.images)
    require(config.num_images <= num_images, got=f"{config.num_images} images to read",
            expected=f"at most {num_images}, which {config.data} holds",
            remedy="lower --num-images")  # fmt: skip
    return data.some(dataset, config.num_images, config.seed)


def measure(name: str, config: Config, show) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the bits of every image and the row of one checkpoint.

    Raises:
      ValueError: a checkpoint of latents, or classes without labels.
    """
    denoiser = denoisers.load(name)
    require(denoiser.codec is None, what=name, got="a denoiser of latents, whose density is not "
            "one of images", expected="a denoiser of images",
            remedy="choose a checkpoint of pixels")  # fmt: skip
    images, labels = held_out(config, denoiser.shape)
    conditional = bool(denoiser.config.num_classes)
    require(not conditional or labels is not None, what=name, got="a network that knows classes",
            expected=f"labels in {config.data}", remedy="it has none")  # fmt: skip
    key, fn = jax.random.key(config.seed), bits(denoiser, config)
    process, _ = subject.continuous(denoiser)
    fine, coarse = (jnp.asarray(grid, jnp.float32) for grid in grids(process, config))

    def part(times, start):
        # The last batch wraps around: one shape, one compilation.
        rows = np.arange(start, start + config.batch) % len(images)
        label = jnp.asarray(labels[rows]) if conditional and labels is not None else None
        image, step_key = jnp.asarray(images[rows]), jax.random.fold_in(key, start)
        return np.stack(fn(denoiser.params, image, label, step_key, times))

    starts = range(0, len(images), config.batch)
    chunks = [part(fine, start) for start in show(starts, desc=name)]
    shift = np.max(np.abs(part(coarse, 0) - chunks[0]))
    bound, dequantized = np.concatenate(chunks, axis=1)[:, : len(images)]
    row = {"checkpoint": name, "conditional": conditional, "images": len(images)}
    for column, values in (("bound", bound), ("dequantized", dequantized)):
        row[column] = float(np.mean(values))
        row[f"{column}_standard_error"] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    row |= {"solver_shift": float(shift), "nfe": 4 * config.num_steps}
    return {f"{name}/bound": bound, f"{name}/dequantized": dequantized}, row


def run(config: Config, *, progress: bool = False):
    """Return arrays `<checkpoint>/bound` and `/dequantized` [num_images], and rows."""
    from tqdm import tqdm

    show = functools.partial(tqdm, disable=not progress, unit="batch")
    done = [measure(name, config, show) for name in config.checkpoints]
    arrays = {name: values for part, _ in done for name, values in part.items()}
    return arrays, [row for _, row in done]


COLUMNS = (
    ("checkpoint", lambda r: Path(r["checkpoint"]).name),
    *((name, lambda r, name=name: f"{r[name]:.3f} ± {r[name + '_standard_error']:.3f}")
      for name in ("bound", "dequantized")),
    ("images", lambda r: r["images"]),
    ("solver", lambda r: f"{r['solver_shift']:.1e}"),
)  # fmt: skip


def table(rows) -> list:
    """Return bits per dimension and their standard error."""
    return [tables.columns(rows, COLUMNS), "bits per dimension, lower is better"]


EXPERIMENT = command.experiment(Config, run, table=table)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
