"""Training while rounding, beside cures after training: what is left of the samples' error.

    python -m experiments.training_aware                            the shipped DiT, W4A4 and others
    python -m experiments.training_aware --recipes W4A4 --num-seeds 5

Each way (`ways`) begins with a recipe of widths at the front door's sites. Training needs no data:
the full-precision network teaches the quantized one at the states of its own sampling runs, all
calls alike, or by the gains that the float network was measured to have, which is the error of the
sample that first-order theory predicts of independent errors; or by that error with all signs kept,
or by the error of the sample itself. A float control is
none: the teacher taught by itself has no error to lose.

A seed is the noise of a training, its signs and its calibration samples; all ways of all seeds are
measured on the same fresh noise, which none has seen. Seeds are the units of every interval.
"""

import dataclasses
import functools
import time

import jax
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.training_aware import plots, summary
from experiments.training_aware import ways as table_of
from qdiffjax import _files, measures, metrics, precision, results, strategies
from qdiffjax._checks import check_names
from qdiffjax.analysis.errors import prediction

NAMES = tuple(table_of.ways(1, 1.0, 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    recipes: tuple[str, ...] = option(
        ("W4A4", "W3A8", "W2A8"), "Recipes in words, see `precision.parse_recipe`.",
        each=precision.parse_recipe,
    )  # fmt: skip
    ways: tuple[str, ...] = option((), "Names of ways, see `ways`; none for all of them.")
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(20, "Steps of the sampler.", least=2)
    train_steps: int = option(100, "Optimizer steps; the hybrid has a fifth.", least=1)
    rate: float = option(0.03, "Adam's rate, in steps of a grid.", above=0)
    num_runs: int = option(4, "Sampling runs of an optimizer step.", least=1)
    num_samples: int = option(256, "Fresh noises that are reported.", least=4)
    num_groups: int = option(20, "Groups that the jackknife leaves out in turn.", least=2)
    num_calibration: int = option(16, "Samples that cures look at.", least=2)
    num_seeds: int = option(3, "Trainings of each way.", least=1)
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse names that are no ways."""
        check_names("ways", self.ways, NAMES)


def run(config: Config, **options):
    """Return arrays and rows of every (seed, recipe, way), and of their summary.

    Arrays of a part: errors [num_samples], RMSE of samples, and losses, the curve of the training.
    Options as `command.parts`.
    """
    steps_of = functools.partial(subject.SAMPLERS[config.sampler], num_steps=config.num_steps)
    here = subject.prepare(config.checkpoint, steps_of, subject.ALL_BUT_LAST, config.seed)
    denoiser, calibration = here.denoiser, here.calibration
    steps = steps_of(denoiser.schedule)
    draw = functools.partial(measures.sample, steps=steps, num_samples=config.num_samples,
                             batch_size=min(128, config.num_samples))  # fmt: skip
    features = metrics.random_convolutions(denoiser.shape)
    known = table_of.ways(config.train_steps, config.rate, config.num_runs)
    noise = [jax.random.key(config.seed + i) for i in range(2)]

    @functools.cache
    def full():
        """Samples on the common noise, and the floor of the Frechet distance."""
        x, other = draw(denoiser, key=noise[0]), draw(denoiser, key=noise[1])
        return x, metrics.frechet_distance(features(other), features(x),
                                           num_groups=config.num_groups)  # fmt: skip

    seeds = [config.seed + 1 + k for k in range(config.num_seeds)]
    keys = [(seed, words, way) for seed in seeds for words in config.recipes
            for way in config.ways or NAMES]  # fmt: skip
    parts = {", ".join(map(str, key)): key for key in keys}

    def measure(part: str):
        seed, words, way = parts[part]
        key = jax.random.key(1_000_000 + seed)
        start = time.perf_counter()
        made = strategies.improve(
            calibration, words, known[way](key), steps, jax.random.fold_in(key, 1),
            num_samples=config.num_calibration, num_calls=config.num_steps,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        x, floor = full()
        x_hat = draw(made.quantized(), key=noise[0])
        errors = np.asarray(prediction.root_mean_square(x_hat - x))
        distance = metrics.frechet_distance(features(x_hat), features(x),
                                            num_groups=config.num_groups)  # fmt: skip
        losses = next(iter(made.losses.values()), np.zeros(0))
        return {"errors": errors, "losses": np.asarray(losses)}, {
            "kind": "run", "seed": seed, "recipe": words, "way": way,
            "rmse": float(np.sqrt(np.mean(errors**2))), "median": float(np.median(errors)),
            "frechet": distance.value, "frechet_low": distance.low,
            "frechet_high": distance.high, "floor": floor.value,
            "evaluations": made.bill.evaluations, "learned": made.bill.optimizer_steps,
            "seconds": seconds,
        }  # fmt: skip

    which = dict.fromkeys(("recipes", "ways", "num_seeds"))  # parts are kept if others are added
    mark = results.fingerprint(dataclasses.asdict(config) | which, here.mark())
    done = command.parts(parts, _saying_hours(measure, len(parts)), mark, **options)
    rows = [row for _, row in done.values()]
    return command.by_part(done), rows + summary.rows(rows)


def _saying_hours(measure, num: int):
    """Return measure, which says after the first training how long all parts take."""
    said: list[float] = []

    def timed(part: str):
        start = time.perf_counter()
        found = measure(part)
        if not said and found[1]["learned"]:
            said.append((time.perf_counter() - start) / 3600)
            _files.say(f"{num} parts: about {num * said[0]:.2g} hours here, by the first training")
        return found

    return timed


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"num_steps": 4, "train_steps": 5, "num_samples": 40, "num_groups": 4, "num_seeds": 2,
           "num_calibration": 4, "recipes": ("W4A4",)},
)  # fmt: skip
