"""Activations rounded with error feedback from call to call: errors of the samples.

    python -m experiments.feedback                                 the shipped DiT
    python -m experiments.feedback --checkpoint fashion_unet

Recipes in words, see `precision.parse_recipe`, in three families: the input x_t alone; the
activations of all sites but the last layer's; weights and activations together. `shaped` hands on
what a call lost: activations by error feedback, which carries one residual an operand, weights by
sigma-delta sequences; `weighed` hands on by the steps' own coefficients (`precision.cancelled`);
`in a byte` keeps residuals in float8 E5M2 (`precision.narrowed`). All see the same noises.
Predicted is from the full-precision run alone.

The last part is by site: each alone at the first width, nearest, stochastic and with feedback,
beside the forecasts of both (`feedback_criterion`) whose ratio says where feedback pays.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.feedback import plots
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import compiling, diffusion, estimates, precision, results
from qdiffjax.analysis.errors import feedback, prediction, runs


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    num_steps: tuple[int, ...] = option((10, 20, 50, 100), "Steps of DDIM.", least=2)
    bits: tuple[int, ...] = option((8, 6, 4), "Widths of activations.", least=2, most=8)
    weight_bits: int = option(4, "Width of weights where they are rounded too.", least=2, most=6)
    num_samples: int = option(64, "Number of samples.", least=2)
    num_site_samples: int = option(16, "Number of samples of the part by site.", least=2)
    num_site_steps: int = option(20, "Steps of DDIM of the part by site.", least=2)
    num_probes: int = option(4, "Probes of the forecasts by site.", least=2)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


BY_SITE = "by site"
WAYS = {"nearest": "", "stochastic": " stochastic", "feedback": " shaped"}


# What is done to the residuals of some ways: {name: (q, steps) -> q}
CANCELLED, NARROW = "feedback, weighed", "feedback, in a byte"
ALTERED: dict[str, Callable] = {
    CANCELLED: precision.cancelled,
    NARROW: lambda q, steps: precision.narrowed(q, jnp.float8_e5m2),
}


def cases(config, num_steps: int) -> dict[tuple[str, str], tuple[str, tuple[str, ...]]]:
    """Return {(family, name): (recipe, sites)}; residuals of some names are `ALTERED`."""
    first, w = config.bits[0], config.weight_bits
    table = {("input", way): (f"A{first} static{word}", ("input",)) for way, word in WAYS.items()}
    table["input", "feedback, last in full"] = (
        f"A{first} static shaped; steps {num_steps - 1}: float", ("input",)
    )  # fmt: skip
    for bits in config.bits:
        table |= {(f"A{bits}", way): (f"A{bits}{word}", config.sites) for way, word in WAYS.items()}
        table |= {(f"A{bits}", way): (f"A{bits} shaped", config.sites) for way in ALTERED}
    mixed = {f"W{w}A{first}": f"W{w}A{first}", f"W{w} shaped": f"W{w} shaped A{first}",
             f"W{w} and A{first} shaped": f"W{w} shaped A{first} shaped",
             f"W{w + 2}A{first}": f"W{w + 2}A{first}", f"W8A{first}": f"W8A{first}"}  # fmt: skip
    return table | {("both", name): (words, config.sites) for name, words in mixed.items()}


def run(config: Config, **options):
    """Return arrays and rows of every (steps, recipe), and one of all sites; touches no file.

    Arrays of a recipe: errors, the RMSE of each sample [samples]. Options as `command.parts`.
    """
    most = max(config.num_steps)
    steps_of = functools.partial(diffusion.ddim, num_steps=most)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser = here.denoiser

    @functools.cache
    def world(num_steps: int, num: int):
        """The sampler, its calibration, its full-precision run, and what is measured of it."""
        steps = diffusion.ddim(denoiser.schedule, num_steps)
        calibration = subject.observed(here, steps, config.seed).calibration.widened(1.2)
        x_T = subject.noise(denoiser, num, config.seed)
        xs = subject.full_states(denoiser, x_T, steps)
        errors = compiling.compiled(lambda q: subject.sample_errors(q, xs, steps))

        @compiling.compiled
        def predicted(q):
            return prediction.root_mean_square(prediction.predict_errors(q, xs, steps)[-1])

        return steps, calibration, x_T, errors, predicted

    @functools.cache
    def quantized(num_steps: int):
        """All recipes of a sampler, in one structure, so that they share a compilation."""
        steps, calibration, *_ = world(num_steps, config.num_samples)
        own = {case: precision.quantize(calibration, words, sites=sites)
               for case, (words, sites) in cases(config, num_steps).items()}  # fmt: skip
        own |= {case: ALTERED[case[1]](q, steps) for case, q in own.items() if case[1] in ALTERED}
        return dict(zip(own, precision.alike([*own.values()], steps), strict=True))

    def measure(part: str):
        if part == BY_SITE:
            return _by_site(config, *world(config.num_site_steps, config.num_site_samples))
        num_steps, family, name, words, _ = parts[part]
        *_, errors, predicted = world(num_steps, config.num_samples)
        q = quantized(num_steps)[family, name]
        values = errors(q)
        rmse = estimates.bootstrap(subject.rms, values, key=jax.random.key(config.seed), num=1000)
        row = {"kind": "recipe", "num_steps": num_steps, "family": family, "name": name,
               "recipe": words, "rmse": float(rmse.value), "low": float(rmse.low),
               "high": float(rmse.high), "median": float(jnp.median(values)),
               "predicted": float(subject.rms(predicted(q)))}  # fmt: skip
        return {"errors": np.asarray(values)}, row

    parts = {
        f"{n} steps, {family}, {name}": (n, family, name, *case)
        for n in config.num_steps
        for (family, name), case in cases(config, n).items()
    }
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts([*parts, BY_SITE], measure, mark, **options)
    return command.by_part(done), [row for _, row in done.values()]


def _by_site(config, steps, calibration, x_T, errors, _):
    bits = config.bits[0]
    whole = precision.quantize(calibration, f"A{bits}", sites=config.sites)
    names = [*whole.site_inputs]
    probes = runs.signs(jax.random.key(config.seed), config.num_probes, x_T)

    forecast = compiling.compiled(lambda q: feedback.feedback_criterion(q, x_T, steps, probes))
    found = forecast(whole)
    own = {(way, name): precision.quantize(calibration, f"A{bits}{word}", sites=(name,))
           for way, word in WAYS.items() for name in names}  # fmt: skip
    values = dict(zip(own, map(errors, precision.alike([*own.values()], steps)), strict=True))
    measured: dict[str, Any] = {way: [values[way, name] for name in names] for way in WAYS}
    size = np.prod(x_T.shape[1:])
    sums = {"independent": found.independent, "fed_back": found.fed_back}
    row = {"kind": BY_SITE, "num_steps": config.num_site_steps, "bits": bits, "names": names,
           **{way: [float(np.sqrt(float(jnp.mean(each[name])) / size)) for name in names]
              for way, each in sums.items()},
           **{way: [float(subject.rms(e)) for e in measured[way]] for way in WAYS}}  # fmt: skip
    return {way: np.asarray(jnp.stack(values)) for way, values in measured.items()}, row


EXPERIMENT = command.experiment(
    Config, run, plots=plots, quick={"num_steps": (4,), "num_samples": 4, "num_site_samples": 2,
                                     "num_site_steps": 3, "num_probes": 2}
)  # fmt: skip
