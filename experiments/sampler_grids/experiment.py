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
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import old_command as command
from experiments.harness import subject
from experiments.sampler_grids import plots
from qdiffjax import compiling, diffusion
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks import data, denoisers

SIGMA_MAX, SIGMA_MIN = 150.0, 0.01  # in units of the signal: the ends of the linear schedule


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run; the flags of the command line."""

    checkpoints: tuple[str, ...] = ()
    nfe: int = 24
    num_samples: int = 10
    samplers: tuple[str, ...] = ()
    seed: int = 0


HELP = {
    "checkpoints": "folders or shipped names; none is every shipped one",
    "nfe": "network calls of every sampler, about",
    "num_samples": "columns of the picture",
    "samplers": "names of rows, as in the picture; none is all",
    "seed": "of the noise",
}


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


def _of(fn: Callable[..., diffusion.Steps], **options):
    return lambda process, times: fn(process, times, **options)


def uniform(process, first, last, num_steps):
    """Equispaced times, the last step from first / N to clean data."""
    return diffusion.power_times(first, 0.0, num_steps)


def quadratic(process, first, last, num_steps):
    """Equispaced roots down to the lowest level that the network knows, and clean data."""
    return diffusion.to_zero(diffusion.quadratic_times(first, last, num_steps - 1))


def log_snr(process, first, last, num_steps):
    """Equispaced log-SNR, and clean data."""
    return diffusion.to_zero(diffusion.log_snr_times(process, first, last, num_steps - 1))


karras = diffusion.karras_times
half = functools.partial(diffusion.ddim_coeffs, eta=0.5)
large = functools.partial(diffusion.ddpm_coeffs, variance_fn=diffusion.forward_variance)

ENTRIES = (
    Entry("DDIM", _of(diffusion.from_coeffs, coeffs_fn=diffusion.ddim_coeffs), uniform),
    Entry("DDIM, eta 0.5", _of(diffusion.from_coeffs, coeffs_fn=half), uniform),
    Entry("DDPM", _of(diffusion.ancestral), uniform),
    Entry("DDPM, fixed large", _of(diffusion.from_coeffs, coeffs_fn=large), uniform),
    Entry("Euler", _of(diffusion.euler), quadratic),
    Entry("Heun", _of(diffusion.heun), quadratic, 2),
    Entry("EDM", _of(diffusion.edm_heun), karras, 2),
    Entry("EDM, churn", _of(diffusion.edm, churn=4.0, churn_range=(0.05, 50.0)), karras, 2),
    Entry("Euler-Maruyama", _of(diffusion.euler_maruyama), quadratic),
    Entry("reverse diffusion", _of(diffusion.reverse_diffusion), quadratic),
    Entry("predictor-corrector", _of(diffusion.predictor_corrector), quadratic, 2),
    Entry("DPM-Solver-2", _of(diffusion.dpm_solver_2), log_snr, 2),
    Entry("DPM-Solver-3", _of(diffusion.dpm_solver_3), log_snr, 3),
    Entry("DPM-Solver++(2S)", _of(diffusion.dpmpp_2s), log_snr, 2),
    Entry("DPM-Solver++(2M)", _of(diffusion.dpmpp_2m), uniform),
    Entry("DPM-Solver++(3M)", _of(diffusion.dpmpp_3m), log_snr),
    Entry("SDE-DPM-Solver++(2M)", _of(diffusion.dpmpp_2m, eta=1.0), karras),
    Entry("UniPC", _of(diffusion.unipc), uniform),
    Entry("DEIS", _of(diffusion.deis), quadratic),
    Entry("PLMS", _of(diffusion.plms), uniform, 1, 1),
    Entry("PNDM", _of(diffusion.pndm), uniform, 1, 9),
    Entry("consistency", _of(diffusion.consistency), karras),
    Entry("one step", lambda process, times: diffusion.one_step(process, times[0]), uniform),
)


def table(entry: Entry, process, nfe: int) -> diffusion.Steps:
    """The sampler's steps from the noisiest time to clean data, at least four of them."""
    num_steps = max((nfe - entry.extra) // entry.calls, 4)
    first, last = process.time(-2 * np.log([SIGMA_MAX, SIGMA_MIN]))
    return entry.method(process, entry.grid(process, float(first), float(last), num_steps))


def chosen(names: tuple[str, ...]) -> tuple[Entry, ...]:
    """The entries of these names, all if there are none.

    Raises:
      ValueError: an unknown name; lists the known ones.
    """
    known = {entry.name: entry for entry in ENTRIES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"got samplers {unknown}, expected some of {list(known)}.")
    return tuple(known[name] for name in names) or ENTRIES


def sample(denoiser: Denoiser, tables, x_T, label, key) -> np.ndarray:
    """Images of every table [samplers, samples, *shape], in one compilation."""
    _, eps_fn = subject.continuous(denoiser)
    condition = () if label is None else (label,)
    calls = max(map(diffusion.nfe, tables))
    slots = max(steps.coeffs.num_slots for steps in tables)

    @compiling.compiled
    def run(params, steps):
        call_fn = diffusion.bind(lambda p, x, t: eps_fn(p, x, t, *condition), params)
        level = subject.continuous(denoiser)[0](steps.t[0])
        # A process that does not preserve variance, or churn, starts at another level.
        x = x_T * jnp.sqrt(level.alpha**2 + level.sigma**2)
        x_0 = diffusion.sample(call_fn, x, steps, key=key, keep_trajectory=False).x_0
        return x_0 if denoiser.codec is None else denoiser.codec.decode(x_0)

    def padded(steps):
        steps = diffusion.pad(steps, calls, slots)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), steps)

    return np.stack([np.asarray(run(denoiser.params, padded(steps))) for steps in tables])


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if config.num_samples < 1 or config.nfe < 1:
        raise ValueError("expected at least 1 sample and 1 network call.")
    chosen(config.samplers)


def run(config: Config, *, progress: bool = False):
    """Return arrays and rows.

    Arrays: `<checkpoint>/samples` uint8 [samplers, samples, *image], `<checkpoint>/nfe`
    [samplers], `samplers`: names. Rows: one for each (checkpoint, sampler), with the fraction of
    samples that are not finite, the root mean square difference from DDIM's samples, and the
    share of pixels outside [-1, 1] by more than 0.1.
    """
    from tqdm import tqdm

    check(config)
    entries = chosen(config.samplers)
    names = config.checkpoints or shipped()
    arrays: dict[str, np.ndarray] = {"samplers": np.array([e.name for e in entries])}
    rows: list[dict] = []
    for name in tqdm(names, disable=not progress, unit="checkpoint"):
        denoiser = denoisers.load(denoisers.find_checkpoint(name))
        process, _ = subject.continuous(denoiser)
        tables = [table(entry, process, config.nfe) for entry in entries]
        num_classes = denoiser.config.num_classes
        label = jnp.arange(config.num_samples) % num_classes if num_classes else None
        x_T = subject.noise(denoiser, config.num_samples, config.seed)
        images = sample(denoiser, tables, x_T, label, jax.random.key(config.seed))
        title = Path(name).name
        arrays[f"{title}/samples"] = as_bytes(images)
        arrays[f"{title}/nfe"] = np.array([diffusion.nfe(steps) for steps in tables])
        rows += [{"checkpoint": title, "sampler": entry.name, "nfe": diffusion.nfe(steps)}
                 | describe(x, images[0])
                 for entry, steps, x in zip(entries, tables, images, strict=True)]  # fmt: skip
    return arrays, rows


def shipped() -> tuple[str, ...]:
    """The names of all shipped denoisers."""
    return tuple(sorted(p.parent.name for p in denoisers.SHIPPED.glob("*/config.json")))


def describe(images: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """What of a picture can be said in numbers."""
    finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    return {
        "not_finite": float(np.mean(~finite)),
        "rms_from_first": float(np.sqrt(np.mean((images[finite] - first[finite]) ** 2))),
        "outside": float(np.mean(np.abs(images[finite]) > 1.1)),
    }


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as bytes; what is not finite is grey."""
    return data.to_uint8(np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0))


EXPERIMENT = command.Experiment(
    "sampler_grids", __doc__ or "", Config, HELP, check, run, plots.write, resumes=False
)


def main(argv=None) -> int:
    """Run, draw, write the results."""
    return command.main(EXPERIMENT, argv)
