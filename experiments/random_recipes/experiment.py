"""Predicted against measured errors of recipes drawn at random, and the cost of so many.

    python -m experiments.random_recipes                           the shipped DiT
    python -m experiments.random_recipes --checkpoint fashion_unet

Every recipe has integers and floats of 2 to 8 bits, another at each site, and may change on the
way. Predicted is from the full-precision run on noises of its own (`predict_errors`), before
anything is run in low precision; measured is the error of samples from fresh noises. What a
practitioner would rank recipes by stands beside it: average bits, and the error of the weights.

All recipes are one structure (`precision.alike`), so that they share a compilation. The last part
times some of them in programs of their own.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.random_recipes import draws, plots
from qdiffjax import compiling, diffusion, estimates, precision, results
from qdiffjax.analysis.errors import prediction
from qdiffjax.sites import match


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    mean_bits: tuple[int, ...] = option((4, 5, 6, 8), "Average widths of weights, the strata.",
                                        least=3, most=8)  # fmt: skip
    num_recipes: int = option(100, "Number of recipes.", least=1)
    num_steps: int = option(20, "Steps of DDIM.", least=2)
    num_samples: int = option(64, "Samples whose error is measured, of each seed.", least=2)
    num_predicted: int = option(64, "Samples whose error is predicted, of each seed.", least=2)
    num_seeds: int = option(2, "Seeds of noises.", least=1)
    num_alone: int = option(3, "Recipes that are timed in programs of their own.", least=1)
    sites: tuple[str, ...] = option(
        ("*", "!last", "!input", "!output"), "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


SPEED = "speed"


def run(config: Config, **options):
    """Return arrays and rows of every recipe, and of the time they take; touches no file.

    Arrays of each: measured [seeds, samples] and predicted [seeds, predicted samples], the RMSE of
    each sample. Options as `command.parts`.
    """
    here = subject.prepare(
        config.checkpoint, lambda s: diffusion.ddim(s, config.num_steps), config.sites, config.seed
    )
    steps = diffusion.ddim(here.denoiser.schedule, config.num_steps)
    names = match(here.sites, config.sites)
    chosen = [s for s in here.sites if s.name in names and s.is_real and not s.is_constant]
    rng = np.random.default_rng(config.seed)
    strata = [config.mean_bits[i % len(config.mean_bits)] for i in range(config.num_recipes)]
    recipes = [draws.draw(rng, chosen, bits, config.num_steps) for bits in strata]
    qs = precision.alike([precision.quantize(here.calibration, r) for r in recipes], steps)
    xs = [_full_run(here, steps, config.num_samples, config.seed + i) for i in
          range(config.num_seeds)]  # fmt: skip
    # Other noises than those that are measured: what is predicted is of recipes, not of samples.
    others = [_full_run(here, steps, config.num_predicted, config.seed + 1000 + i)
              for i in range(config.num_seeds)]  # fmt: skip

    def errors_of(q, xs, others):
        predicted = prediction.predict_errors(q, others, steps)[-1]
        return subject.sample_errors(q, xs, steps), prediction.root_mean_square(predicted)

    shared = compiling.compiled(errors_of)

    def measure(part: str):
        if part == SPEED:
            return {}, _speed(config, here, recipes, qs, steps, (xs[0], others[0]), errors_of)
        place = int(part.split()[-1])
        pairs = [shared(qs[place], *each) for each in zip(xs, others, strict=True)]
        measured, predicted = (jnp.stack(values) for values in zip(*pairs, strict=True))
        rmse = estimates.bootstrap(
            subject.rms, measured.ravel(), key=jax.random.key(config.seed), num=1000
        )
        weights, activations = draws.mean_bits(recipes[place], chosen, config.num_steps)
        row = {"recipe": place, "stratum": strata[place], "weight_bits": weights,
               "activation_bits": activations, "phases": len(recipes[place].phases),
               "weight_error": _weight_error(here, qs[place]),
               "measured": float(rmse.value), "low": float(rmse.low), "high": float(rmse.high),
               "predicted": float(subject.rms(predicted)),
               "of_seeds": [[float(subject.rms(m)), float(subject.rms(p))]
                            for m, p in zip(measured, predicted, strict=True)]}  # fmt: skip
        return {"measured": np.asarray(measured), "predicted": np.asarray(predicted)}, row

    parts = [*(f"recipe {i}" for i in range(config.num_recipes)), SPEED]
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts(parts, measure, mark, **options)
    return command.by_part(done), [row for _, row in done.values()]


def _full_run(here, steps, num: int, seed: int) -> jax.Array:
    x_T = subject.noise(here.denoiser, num, seed)
    return subject.full_states(here.denoiser, x_T, steps)


def _weight_error(here, q) -> float:
    """Return the squared error of all weights over their squares, the mean over calls."""
    error = size = 0.0
    for name, inputs in q.site_inputs.items():
        if (weight := inputs.weight) is None:
            continue
        w = here.calibration.weights[name]
        is_switch = isinstance(weight, precision.Switch)
        taken = [weight.alternatives[k] for k in weight.which] if is_switch else [weight]
        errors = [0.0 if a is None else float(jnp.sum((a - w) ** 2)) for a in taken]
        error += float(np.mean(errors))
        size += float(jnp.sum(w**2))
    return error / size


def _speed(config, here, recipes, qs, steps, args, errors_of) -> dict[str, Any]:
    """Return seconds a recipe in a program that all share, and in programs of their own."""
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        start = time.perf_counter()
        program = jax.jit(errors_of).lower(qs[0], *args).compile()
        compiled = time.perf_counter() - start
        start = time.perf_counter()
        for q in qs[: config.num_alone]:
            jax.block_until_ready(program(q, *args))
        each = (time.perf_counter() - start) / min(config.num_alone, len(qs))
        start = time.perf_counter()
        for recipe in recipes[: config.num_alone]:
            q = dataclasses.replace(precision.quantize(here.calibration, recipe), widths=None)
            jax.block_until_ready(jax.jit(lambda *a: errors_of(*a))(q, *args))
        alone = (time.perf_counter() - start) / min(config.num_alone, len(recipes))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    num = 200
    return {"recipe": SPEED, "compile_s": compiled, "each_s": each, "alone_s": alone,
            "speedup_of_200": num * alone / (compiled + num * each)}  # fmt: skip


EXPERIMENT = command.experiment(
    Config, run, plots=plots, quick={"num_recipes": 8, "num_steps": 5, "num_samples": 8,
                                     "num_predicted": 4, "num_seeds": 1, "num_alone": 1}
)  # fmt: skip
