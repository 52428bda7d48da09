"""What an experiment studies: a trained denoiser, its sites, and its quantized versions."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.command import option
from qdiffjax import diffusion, precision, results
from qdiffjax._checks import require
from qdiffjax._conditions import as_arguments
from qdiffjax.analysis.errors import prediction, runs
from qdiffjax.compiling import compiled
from qdiffjax.denoiser import Denoiser
from qdiffjax.metrics import features
from qdiffjax.networks import classifiers, denoisers
from qdiffjax.sites import Site, match


def _on(method: Callable, times_fn: Callable = diffusion.uniform_times, **options) -> Callable:
    """(schedule, num_steps) -> steps of a method that takes times."""

    def steps_of(schedule, num_steps: int):
        require(isinstance(schedule, diffusion.DiscreteSchedule), "schedule",
                got=type(schedule).__name__, expected="discrete times",
                remedy="choose the sampler ddim")  # fmt: skip
        most = schedule.num_train_steps
        require(
            1 <= num_steps <= most,
            "num_steps",
            got=num_steps,
            expected=f"1 to {most}",
            remedy="take fewer steps",
        )
        return method(schedule, times_fn(most, num_steps), **options)

    return steps_of


def _quadratic(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Distinct integer times near num_train_steps u^2, u from 1 to 0, as Song et al. 2021, D.3."""
    times = np.ceil(num_train_steps * np.linspace(1, 0, num_steps + 1) ** 2)
    return np.maximum(times, np.arange(num_steps, -1, -1))


class Eyes(NamedTuple):
    """What samples are seen by: features and what to call them, and probabilities.

    features_fn: samples -> features, None for random convolutions; probabilities_fn: samples ->
    probabilities of classes, None for none.
    """

    name: str = features.NAME
    features_fn: Callable | None = None
    probabilities_fn: Callable | None = None

    def features_of(self, shape: tuple[int, ...]) -> Callable:
        """Return the features of samples of a shape."""
        return self.features_fn or features.random_convolutions(shape)


@functools.lru_cache(maxsize=4)
def eyes_of(checkpoint: str) -> Eyes:
    """Return the shipped classifier of a network's data, random convolutions if there is none."""
    shipped = classifiers.shipped_for(checkpoint)
    return Eyes() if shipped is None else Eyes(*classifiers.load_classifier(shipped)[:3])


def images_of(denoiser: Denoiser) -> tuple[Callable, tuple[int, ...]]:
    """Return a function from samples [num, ...] to what people see, in NumPy, and its shape.

    Latents are decoded, a batch at a time.
    """
    if denoiser.codec is None:
        return np.asarray, tuple(denoiser.shape)
    decode = compiled(denoiser.codec.decode)
    seen = jax.eval_shape(decode, jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32))
    return (
        lambda x: np.concatenate([decode(x[i : i + DECODED]) for i in range(0, len(x), DECODED)])
    ), seen.shape[1:]


def checkpoint(default: str = "fashion_unet") -> Any:
    """Return the option of a network, refused before any work where there is none."""
    return option(
        default,
        "Folder of a checkpoint, ours or of diffusers, or the name of a shipped one.",
        each=check_checkpoint,
    )


def check_checkpoint(name: str) -> None:
    """Raise OSError or ValueError unless `name` is a checkpoint, or "package.module:make"."""
    if ":" not in name:
        denoisers.load_config(denoisers.find_checkpoint(name))


# (schedule, num_steps) -> steps
SAMPLERS: dict[str, Callable[..., diffusion.Steps]] = {
    "ddim": diffusion.ddim,
    "ddim-half": lambda schedule, num_steps: diffusion.ddim(schedule, num_steps, eta=0.5),
    "ddim-quadratic": _on(diffusion.from_coeffs, _quadratic, coeffs_fn=diffusion.ddim_coeffs),
    "ddpm": diffusion.ddpm,
    "ddpm-large": lambda schedule, num_steps: diffusion.ddpm(
        schedule, num_steps, variance_fn=diffusion.forward_variance
    ),
    "edm-heun": _on(diffusion.edm_heun, _quadratic),
    "dpmpp-2m": _on(diffusion.dpmpp_2m),
    "dpmpp-3m": _on(diffusion.dpmpp_3m),
    "dpmpp-2m-sde": _on(diffusion.dpmpp_2m, eta=1.0),
    "unipc": _on(diffusion.unipc),
    "deis": _on(diffusion.deis, _quadratic),
    "plms": _on(diffusion.plms),
}
NUM_CALIBRATION = 32
DECODED = 128  # latents at a time
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
ALL_BUT_LAST = ("*", "!last")  # rounding the few weights of the last layer costs most at 8 bits


@dataclasses.dataclass(frozen=True)
class Subject:
    """A denoiser with everything that is measured once, whatever the width.

    calibration: its weights, and the ranges of its activations at every step of a sampling run;
    globs: which sites are quantized.
    """

    denoiser: Denoiser
    calibration: precision.Calibration
    globs: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites of the denoiser."""
        return self.calibration.sites

    def widened(self, factor: float) -> "Subject":
        """The same with the ranges of the denoiser's input and output times a factor."""
        return dataclasses.replace(self, calibration=self.calibration.widened(factor))

    def quantized(
        self, weight_bits: int | None, activation_bits: int | None
    ) -> precision.Quantized:
        """The denoiser at these widths: weights per channel, activations per tensor, static.

        None leaves either in full precision.
        """
        return precision.quantize(self.calibration, self.recipe(weight_bits, activation_bits))

    def recipe(self, weight_bits: int | None, activation_bits: int | None) -> precision.Recipe:
        """These widths at the sites that are quantized."""
        return precision.uniform(
            self.sites, weight_bits=weight_bits, activation_bits=activation_bits, globs=self.globs
        )

    def mark(self) -> str:
        """Fingerprint of the denoiser: its parameters, what it predicts, and its schedule."""
        denoiser, schedule = self.denoiser, self.denoiser.schedule
        # Where a function lies in memory is not what it is.
        words = [_ADDRESS.sub("", str(what)) for what in (denoiser.prediction, schedule)]
        table = getattr(schedule, "alpha_bar", None)  # of which the words show only some numbers
        return results.fingerprint(
            denoiser.shape, words, table,
            *(np.asarray(a) for a in jax.tree.leaves(denoiser.params)),
        )  # fmt: skip


def without_idle_sites(q: precision.Quantized) -> precision.Quantized:
    """Return the denoiser without the inputs of sites where nothing is quantized."""
    busy = {n: v for n, v in q.site_inputs.items() if v.weight is not None or v.activations}
    return dataclasses.replace(q, site_inputs=busy)


def continuous(denoiser: Denoiser):
    """Return the denoiser's process at real times, and its eps_fn there.

    Its own eps_fn reads a discrete schedule, if the network does not predict eps.
    """
    process = denoiser.schedule
    if isinstance(process, diffusion.DiscreteSchedule):
        process = diffusion.Interpolated(process)
    return process, dataclasses.replace(denoiser, schedule=process).eps_fn


def noise(denoiser: Denoiser, num: int, seed: int) -> jax.Array:
    """Initial noise [num, *shape]; sample i is the same for every num."""
    return denoiser.draw(jax.random.key(seed), num).x_T


def noise_key(steps: diffusion.Steps, seed: int) -> jax.Array | None:
    """Key of the sampler's own noise; None where it adds none."""
    return steps.noise_key(jax.random.key(seed + 1))


def prepare(
    checkpoint: str, steps_of, globs, seed: int, *, takes_cond: bool = False, values: bool = False
) -> Subject:
    """Load a checkpoint and measure what every width needs.

    Args:
      checkpoint: see `find_checkpoint`.
      steps_of: schedule -> steps, the sampler to calibrate on.
      globs: sites to quantize, see `sites.match`.
      seed: of the calibration noise; differs from the noise that is analysed.
      takes_cond: whether the caller gives conditions to the network.
      values: whether values stored between products are sites too, see `Denoiser.with_values`.

    Raises:
      FileNotFoundError, ValueError: no or no fitting checkpoint, a glob that matches nothing.
    """
    # Full precision is float32 also where matrix units would rather take tf32 or bfloat16.
    jax.config.update("jax_default_matmul_precision", "highest")
    denoiser = denoisers.load(checkpoint)
    denoiser = denoiser.with_values() if values else denoiser
    steps = steps_of(denoiser.schedule)
    require(takes_cond or denoiser.cond is None, checkpoint, got="a network with conditions",
            expected="one without", remedy="use experiments.error_bounds")  # fmt: skip
    eps_fn, params, x, t = denoiser.eps_fn, denoiser.params, *zeros(denoiser)
    cond = None if denoiser.cond is None else denoiser.draw_cond(jax.random.key(seed), 1)
    sites = denoiser.sites()
    globs = tuple(globs)
    require(
        match(sites, globs),
        "sites",
        got=globs,
        expected="globs that leave a site",
        remedy="see `sites.match`; '*' is all of them",
    )
    weights = precision.weight_operands(eps_fn, params, x, t, *as_arguments(cond))
    calibration = precision.Calibration(denoiser, sites, weights, {})
    return observed(Subject(denoiser, calibration, globs), steps, seed)


def zeros(denoiser: Denoiser) -> tuple[jax.Array, jax.Array]:
    """Return one sample and one time, zeros."""
    return jnp.zeros((1, *denoiser.shape), jnp.float32), jnp.zeros((), jnp.float32)


def observed(subject: Subject, steps: diffusion.Steps, seed: int) -> Subject:
    """The same with the ranges of the activations along a calibration run of this sampler."""
    c, key = subject.calibration, jax.random.key(seed + 1_000_003)
    x_T, cond = subject.denoiser.draw(key, NUM_CALIBRATION, steps.t[0])
    run = jax.jit(lambda p, x, key, cond: precision.observe_ranges(
        c.eps_fn, p, steps, x, key=key, cond=cond
    ))  # fmt: skip
    ranges = run(c.params, x_T, jax.random.key(seed + 1_000_004), cond)
    noise = c.noise | precision.marks_of(key, x_T)
    return dataclasses.replace(
        subject, calibration=dataclasses.replace(c, ranges=ranges, noise=noise)
    )


def full_states(denoiser: Denoiser, x_T, steps: diffusion.Steps, key=None) -> jax.Array:
    """Return the states of the full-precision run [N+1, num, ...]; key: of the sampler's noise."""
    return _full_run(denoiser, steps)(x_T, key)


def _full_run(denoiser: Denoiser, steps: diffusion.Steps) -> Callable:
    full = precision.full_call(precision.Quantized(denoiser, {}))
    return compiled(lambda x, key: diffusion.sample(full, x, steps, key=key).states)


def check_shares(config) -> None:
    """Refuse numbers of samples that seeds cannot share out evenly."""
    num, seeds = config.num_samples, config.num_seeds
    require(num % seeds == 0, "--num-samples", got=f"{num} for {seeds} seeds",
            expected="a multiple of --num-seeds, which share the samples out",
            remedy=f"--num-samples {-(-num // seeds) * seeds}")  # fmt: skip


def shares_of_states(denoiser: Denoiser, x_T, steps: diffusion.Steps, num: int, key=None) -> list:
    """Return (`full_states`, key) of equal shares of the noises, states [N+1, batch / num, ...]."""
    keys = [None] * num if key is None else list(jax.random.split(key, num))
    run = _full_run(denoiser, steps)
    return [(run(x, key), key) for x, key in zip(jnp.split(x_T, num), keys, strict=True)]


def final_errors(q: precision.Quantized, xs, steps: diffusion.Steps, key=None) -> jax.Array:
    """Return quantized samples less those of `full_states` xs, of the same key [num, ...]."""
    x_T, x_0 = (runs.current(runs.at(xs, end), steps) for end in (0, -1))
    return precision.final_samples(q, x_T, steps, key) - x_0


def sample_errors(q: precision.Quantized, xs, steps: diffusion.Steps, key=None) -> jax.Array:
    """Return the RMSE of each quantized sample [num] beside the states xs of `full_states`."""
    return prediction.root_mean_square(final_errors(q, xs, steps, key))


def rms(values) -> jax.Array:
    """Return the root of the mean square of all values."""
    return jnp.sqrt(jnp.mean(values**2))


class FullRun(NamedTuple):
    """A calibrated denoiser and its full-precision run.

    steps: the sampler; key: of its own noise, None where it adds none; x_T: the initial noise
    [num_samples, *shape].
    """

    subject: Subject
    steps: diffusion.Steps
    key: jax.Array | None
    x_T: jax.Array
    run: diffusion.Trajectory


def run_in_full(config, steps_of) -> FullRun:
    """Calibrate the checkpoint of a config, with its sites and seed, and draw its samples."""
    name = getattr(config, "model", "") or config.checkpoint
    study = prepare(name, steps_of, config.sites, config.seed, takes_cond=True)
    steps, key = steps_of(study.denoiser.schedule), jax.random.key(config.seed)
    x_T, cond = study.denoiser.draw(key, config.num_samples, steps.t[0])
    denoiser = dataclasses.replace(study.denoiser, cond=cond)
    calibration = dataclasses.replace(study.calibration, denoiser=denoiser)
    study = dataclasses.replace(study, denoiser=denoiser, calibration=calibration)
    full = diffusion.bind(denoiser.eps_fn, denoiser.params, denoiser.cond)
    noise_of_steps = noise_key(steps, config.seed)
    run = compiled(lambda x: diffusion.sample(full, x, steps, key=noise_of_steps))(x_T)
    return FullRun(study, steps, noise_of_steps, x_T, run)
