"""Every cure of the field after training, side by side: what is left of the samples' error.

    python -m experiments.cures                                    the shipped DiT
    python -m experiments.cures --checkpoint fashion_unet
    python -m experiments.cures --recipes W4A4 --cases none GPTQ rotation

Each case is a recipe of widths with cures on top (`strategies`); "none" is the front door's default
of the same widths and sites. All cases of all seeds see the same fresh noises, which no cure has
seen; a seed is a calibration of its own (its samples, signs, phases). Which case is best for a
recipe is chosen on noises of another split and reported on the fresh ones.

The error of a sample is its RMSE to the full-precision sample of the same noise. Recovered is
1 - median / median of "none". Ceiling is what taking away the mean of the errors that are left
would gain at most; flops are those of a step as simulated, over those of "none". Intervals resample
seeds and noises; p is Wilcoxon's of the paired log ratios to "none", averaged over seeds, after
Holm over all cases and recipes.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cures import cases as table_of
from experiments.cures import plots, summary
from experiments.cures.cases import NONE, Case
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import _files, compiling, diffusion, precision, results, strategies
from qdiffjax._checks import check_names
from qdiffjax.analysis.errors import prediction


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    recipes: tuple[str, ...] = option(
        ("W4A8", "W4A4", "W8A8", "W6A6", "W3A8"), "Widths.", each=table_of.check_recipe
    )
    cases: tuple[str, ...] = option((), "Names of cases, see the table; none for all of them.")
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(50, "Steps of the sampler.", least=2)
    num_samples: int = option(128, "Fresh noises that are reported.", least=2)
    num_chosen: int = option(32, "Noises of the split that chooses.", least=2)
    num_calibration: int = option(16, "Samples that cures look at.", least=2)
    num_seeds: int = option(3, "Calibrations of each cure.", least=1)
    learn_steps: int = option(200, "Optimizer steps of reconstructions.", least=1)
    sites: tuple[str, ...] = option(
        ("*", "!input", "!output", "!products", "!last"), "Globs of sites, see `sites.match`."
    )
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse names that are no cases."""
        known = table_of.cases("W4A8", self.num_steps, jax.random.key(0), self.learn_steps)
        check_names("cases", self.cases, known)


def run(config: Config, **options):
    """Return arrays and rows of every (seed, recipe, case), and of their summary.

    Arrays of a case: errors [num_samples] and chosen [num_chosen], RMSE of samples.
    Options as `command.parts`.
    """
    steps_of = functools.partial(subject.SAMPLERS[config.sampler], num_steps=config.num_steps)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser, calibration = here.denoiser, here.calibration
    steps = steps_of(denoiser.schedule)
    x_T = subject.noise(denoiser, config.num_samples + config.num_chosen, config.seed)
    key = subject.noise_key(steps, config.seed)
    xs = subject.full_states(denoiser, x_T, steps, key)
    errors_of = compiling.compiled(lambda q: subject.final_errors(q, xs, steps, key))

    @functools.cache
    def tables(seed: int, words: str) -> dict[str, Case]:
        known = table_of.cases(words, config.num_steps, table_of.key_of(seed, words),
                               config.learn_steps)  # fmt: skip
        fit = table_of.fitting(known, calibration.sites)
        chosen = dict.fromkeys([NONE, *config.cases]) if config.cases else fit
        return {name: known[name] for name in chosen}

    seeds = [config.seed + 1 + k for k in range(config.num_seeds)]
    keys = [(seed, words, name) for seed in seeds for words in config.recipes
            for name in tables(seed, words)]  # fmt: skip
    parts = {", ".join(map(str, key)): key for key in keys}

    def measure(part: str):
        seed, words, name = parts[part]
        case, start = tables(seed, words)[name], time.perf_counter()
        made = strategies.improve(
            calibration, case.words, case.cures, steps, jax.random.fold_in(jax.random.key(seed), 9),
            num_samples=config.num_calibration, num_calls=config.num_steps, sites=config.sites,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        q = made.quantized()
        errors = errors_of(q)
        values = np.asarray(prediction.root_mean_square(errors))
        row = {"kind": "run", "seed": seed, "recipe": words, "case": name,
               "median": float(np.median(values[: config.num_samples])),
               "rms": float(np.sqrt(np.mean(values[: config.num_samples] ** 2))),
               "bits": strategies.stored_bits(made, case.rank) if made.rounds_weight() else None,
               "evaluations": made.bill.evaluations, "learned": made.bill.optimizer_steps,
               "seconds": seconds, "flops": errors_of.lower(q).cost_analysis()["flops"],
               "ceiling": strategies.ceiling(errors[: config.num_samples])}  # fmt: skip
        arrays = {"errors": values[: config.num_samples], "chosen": values[config.num_samples :]}
        return arrays, row

    _say_hours(denoiser, x_T, steps, key, len(parts))
    which = dict.fromkeys(("recipes", "cases", "num_seeds"))  # parts are kept if others are added
    mark = results.fingerprint(dataclasses.asdict(config) | which, here.mark())
    done = command.parts(parts, measure, mark, **options)
    errors = {parts[part]: arrays for part, (arrays, _) in done.items()}
    rows = [row for _, row in done.values()]
    return command.by_part(done), rows + summary.rows(errors, rows, config.seed)


def _say_hours(denoiser, x_T, steps, key, num: int) -> None:
    """Say beforehand how long all parts take, from one timed sampling run."""
    full = precision.full_call(precision.Quantized(denoiser, {}))
    run = compiling.compiled(
        lambda x: diffusion.sample(full, x, steps, key=key, keep_trajectory=False).x_0
    )
    jax.block_until_ready(run(x_T))
    start = time.perf_counter()
    jax.block_until_ready(run(jnp.array(x_T)))
    hours = 3 * num * (time.perf_counter() - start) / 3600
    _files.say(f"{num} parts: about {hours:.1g} hours here, 3 full-precision runs for each")


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"num_steps": 4, "num_samples": 8, "num_chosen": 4, "num_seeds": 2, "learn_steps": 5,
           "num_calibration": 4, "recipes": ("W4A8",)},
)  # fmt: skip
