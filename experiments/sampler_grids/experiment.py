"""Samples of every shipped network by every sampler, from the same noise: one picture a network.

    python -m experiments.sampler_grids                        every shipped checkpoint
    python -m experiments.sampler_grids --checkpoints runs/my_unet --nfe 40

Rows are samplers, columns are samples: all start from the same x_T, a class-conditional network is
asked for the classes 0, 1, 2, ... in turn. Every sampler gets about `nfe` network calls, a method
of two calls a step half as many steps, on the time grid of its authors: at so few steps the grid
matters more than the order. Samplers are tables padded to one shape, so a network is compiled once.
A discrete schedule is read at real times, for methods that need levels between.

Not to be alarmed by: stochastic methods of first order (Euler-Maruyama, reverse diffusion,
predictor-corrector) are made for hundreds of steps and leave noise; "one step" is a consistency
model's sampler and divides the error of a network that was not trained as one by alpha_T.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, networks, subject
from experiments.harness.command import option
from experiments.sampler_grids import plots
from qdiffjax import compiling, diffusion
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks import data, denoisers

SIGMA_MAX, SIGMA_MIN = 150.0, 0.01  # in units of the signal: the ends of the linear schedule


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sampler by its name in the picture.

    method: (process, times) -> Steps; grid: (process, first, last, num_steps) -> times; calls:
    network calls of one step; extra: beyond those.
    """

    name: str
    method: Callable[[Any, np.ndarray], diffusion.Steps]
    grid: Callable[[Any, float, float, int], np.ndarray]
    calls: int = 1
    extra: int = 0


def uniform(process, first, last, num_steps):
    """Return equispaced times, the last step from first / N to clean data."""
    return diffusion.power_times(first, 0.0, num_steps)


def quadratic(process, first, last, num_steps):
    """Return equispaced roots down to the lowest level that the network knows, and clean data."""
    return diffusion.to_zero(diffusion.quadratic_times(first, last, num_steps - 1))


def log_snr(process, first, last, num_steps):
    """Return times of equispaced log-SNR, and clean data."""
    return diffusion.to_zero(diffusion.log_snr_times(process, first, last, num_steps - 1))


karras = diffusion.karras_times
half = partial(diffusion.ddim_coeffs, eta=0.5)
large = partial(diffusion.ddpm_coeffs, variance_fn=diffusion.forward_variance)

ENTRIES = {entry.name: entry for entry in (
    Entry("DDIM", partial(diffusion.from_coeffs, coeffs_fn=diffusion.ddim_coeffs), uniform),
    Entry("DDIM, eta 0.5", partial(diffusion.from_coeffs, coeffs_fn=half), uniform),
    Entry("DDPM", diffusion.ancestral, uniform),
    Entry("DDPM, fixed large", partial(diffusion.from_coeffs, coeffs_fn=large), uniform),
    Entry("Euler", diffusion.euler, quadratic),
    Entry("Heun", partial(diffusion.heun, denoise_last=True), quadratic, 2),
    Entry("EDM", diffusion.edm_heun, karras, 2),
    Entry("EDM, churn", partial(diffusion.edm, churn=4.0, churn_range=(0.05, 50.0)), karras, 2),
    Entry("Euler-Maruyama", diffusion.euler_maruyama, quadratic),
    Entry("reverse diffusion", diffusion.reverse_diffusion, quadratic),
    Entry("predictor-corrector", diffusion.predictor_corrector, quadratic, 2),
    Entry("DPM-Solver-2", diffusion.dpm_solver_2, log_snr, 2),
    Entry("DPM-Solver-3", diffusion.dpm_solver_3, log_snr, 3),
    Entry("DPM-Solver++(2S)", diffusion.dpmpp_2s, log_snr, 2),
    Entry("DPM-Solver++(2M)", diffusion.dpmpp_2m, uniform),
    Entry("DPM-Solver++(3M)", diffusion.dpmpp_3m, log_snr),
    Entry("SDE-DPM-Solver++(2M)", partial(diffusion.dpmpp_2m, eta=1.0), karras),
    Entry("UniPC", diffusion.unipc, uniform),
    Entry("DEIS", diffusion.deis, quadratic),
    Entry("PLMS", diffusion.plms, uniform, 1, 1),
    Entry("PNDM", diffusion.pndm, uniform, 1, 9),
    Entry("consistency", diffusion.consistency, karras),
    Entry("one step", lambda process, times: diffusion.one_step(process, times[0]), uniform),
)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the flags of the command line."""

    checkpoints: tuple[str, ...] = option(
        (),
        "Folders of checkpoints or names of shipped ones; none is every shipped one.",
        each=subject.check_checkpoint,
    )
    nfe: int = option(24, "Network calls of every sampler, about.", least=1)
    num_samples: int = option(10, "Columns of the picture.", least=1)
    samplers: tuple[str, ...] = option((), "Rows of the picture; none is all.", choices=ENTRIES)
    seed: int = command.seed("Seed of the noise.")


def table(entry: Entry, process, nfe: int) -> diffusion.Steps:
    """Return the sampler's steps from the noisiest time to clean data, at least four of them."""
    num_steps = max((nfe - entry.extra) // entry.calls, 4)
    first, last = process.time(-2 * np.log([SIGMA_MAX, SIGMA_MIN]))
    return entry.method(process, entry.grid(process, float(first), float(last), num_steps))


def sample(denoiser: Denoiser, tables, x_T, label, key) -> np.ndarray:
    """Return images of every table [samplers, samples, *shape], in one compilation."""
    _, eps_fn = subject.continuous(denoiser)
    condition = () if label is None else (label,)
    calls = max(map(diffusion.nfe, tables))
    slots = max(steps.coeffs.num_slots for steps in tables)

    @compiling.compiled
    def decoded(params, steps):
        call_fn = diffusion.bind(lambda p, x, t: eps_fn(p, x, t, *condition), params)
        level = subject.continuous(denoiser)[0](steps.t[0])
        # A process that does not preserve variance, or churn, starts at another level.
        x = x_T * jnp.sqrt(level.alpha**2 + level.sigma**2)
        x_0 = diffusion.sample(call_fn, x, steps, key=key, keep_trajectory=False).x_0
        return x_0 if denoiser.codec is None else denoiser.codec.decode(x_0)

    def padded(steps):
        steps = diffusion.pad(steps, calls, slots)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), steps)

    return np.stack([np.asarray(decoded(denoiser.params, padded(steps))) for steps in tables])


def run(config: Config, *, progress: bool = False):
    """Return arrays and rows.

    Arrays: `<checkpoint>/samples` uint8 [samplers, samples, *image], `<checkpoint>/nfe`
    [samplers], `samplers`: names. Rows: one for each (checkpoint, sampler), with the fraction of
    samples that are not finite, the root mean square difference from DDIM's samples, and the
    share of pixels outside [-1, 1] by more than 0.1.
    """
    from tqdm import tqdm

    entries = [ENTRIES[name] for name in config.samplers or ENTRIES]
    names = networks.titles(config.checkpoints or shipped())
    arrays: dict[str, np.ndarray] = {"samplers": np.array([e.name for e in entries])}
    rows: list[dict] = []
    for title, name in tqdm(names.items(), disable=not progress, unit="checkpoint"):
        denoiser = denoisers.load(name)
        process, _ = subject.continuous(denoiser)
        tables = [table(entry, process, config.nfe) for entry in entries]
        num_classes = denoiser.config.num_classes
        label = jnp.arange(config.num_samples) % num_classes if num_classes else None
        x_T = subject.noise(denoiser, config.num_samples, config.seed)
        images = sample(denoiser, tables, x_T, label, jax.random.key(config.seed))
        arrays[f"{title}/samples"] = as_bytes(images)
        arrays[f"{title}/nfe"] = np.array([diffusion.nfe(steps) for steps in tables])
        rows += [{"checkpoint": title, "sampler": entry.name, "nfe": diffusion.nfe(steps)}
                 | describe(x, images[0])
                 for entry, steps, x in zip(entries, tables, images, strict=True)]  # fmt: skip
    return arrays, rows


def shipped() -> tuple[str, ...]:
    """Return the names of all shipped denoisers."""
    return tuple(sorted(p.parent.name for p in denoisers.SHIPPED.glob("*/config.json")))


def describe(images: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Return what numbers say of a picture, beside the first sampler's."""
    finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    return {
        "not_finite": float(np.mean(~finite)),
        "rms_from_first": float(np.sqrt(np.mean((images[finite] - first[finite]) ** 2))),
        "outside": float(np.mean(np.abs(images[finite]) > 1.1)),
    }


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Return images in [-1, 1] as bytes; what is not finite is grey."""
    return data.to_uint8(np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0))


EXPERIMENT = command.experiment(Config, run, plots=plots)
