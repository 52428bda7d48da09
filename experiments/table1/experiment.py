"""The survey's Table 1, measured: seven techniques, each in a plain and a best form.

    python -m experiments.table1                                   the shipped DiT
    python -m experiments.table1 --checkpoint fashion_unet --recipes W4A8
    python -m experiments.table1 --techniques "uniform PTQ" QAT --num-seeds 3

Every form of a technique is a recipe with cures (`techniques`), of the same sites and of the same
average bits where the technique does not say otherwise: the bits that it stores stand beside it.
What is random in a form, its calibration samples, signs and training noise, is a seed; all forms of
all seeds are measured on the same fresh noise, which none has seen.

  RMSE, PSNR    to the full-precision samples of the same noise; intervals over samples and seeds
  Frechet       distance to the full-precision samples, and to images if `--data` names some, by the
                shipped classifier's features or random convolutions; floor: of other noise
  guaranteed    what the RMSE of the next sample does not exceed (0.9, 0.95), of the first seed
  bits, stored  of a weight in products, on average (survey, eq. 13), and kept with its scales
  MB, Gbop      stored, and bit-operations of a call; v5e, H200: microseconds of a call of one
                sample by the roofline (`hardware`), where widths are those of the products
  cost          evaluations of the network, optimizer steps and seconds here
  overhead      operations of a call over those of the technique without cures

Times of chips are predicted, bytes and bit-operations exact, the rest measured here. A form that
fails is a line that says so.
"""

import dataclasses
import functools
import time

import jax
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.table1 import costs, plots, summary
from experiments.table1 import techniques as table_of
from qdiffjax import measures, metrics, precision, results, strategies
from qdiffjax._checks import check_names, require
from qdiffjax.analysis.errors import prediction
from qdiffjax.networks import data as images_of


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    recipes: tuple[str, ...] = option(
        ("W4A4", "W4A8", "W3A8", "W2A8", "W6A6", "W8A8"), "Widths.", each=summary.widths_of
    )
    techniques: tuple[str, ...] = option((), "Techniques; none for all.")
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(20, "Steps of the sampler.", least=3)
    num_samples: int = option(256, "Fresh noises that are reported.", least=40)
    num_groups: int = option(20, "Groups that the jackknife leaves out in turn.", least=2)
    num_calibration: int = option(16, "Samples that cures look at.", least=2)
    train_steps: int = option(100, "Optimizer steps of QAT; hybrids have a fifth.", least=1)
    rate: float = option(0.03, "Adam's rate, in steps of a grid.", above=0)
    num_noises: int = option(24, "Samples of a part of an allocation.", least=2)
    num_seeds: int = option(1, "Seeds of each form.", least=1)
    data: str = option("", "Images to compare with, see `networks.data.load`; none without.")
    sites: tuple[str, ...] = option(
        ("*", "!input", "!output", "!products", "!last"), "Globs of sites, see `sites.match`."
    )
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse techniques that are none, and fewer than two samples for each group."""
        check_names("techniques", self.techniques, table_of.SURVEY)
        require(self.num_samples >= 2 * self.num_groups, "num_samples", got=self.num_samples,
                expected=f"at least {2 * self.num_groups}, two for each group",
                remedy="draw more, or take fewer groups")  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows of every (seed, recipe, technique, form), and of their summary.

    Arrays of a part: errors [num_samples], RMSE of samples. Options as `command.parts`.
    """
    steps_of = functools.partial(subject.SAMPLERS[config.sampler], num_steps=config.num_steps)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser, steps = here.denoiser, steps_of(here.denoiser.schedule)
    eyes = subject.eyes_of(config.checkpoint)
    seen_fn, shape = subject.images_of(denoiser)
    of_images = eyes.features_of(shape)
    images = None
    if config.data:
        dataset = images_of.load(config.data, "test", shape)
        images = images_of.some(dataset, config.num_samples).images
    draw = functools.partial(measures.sample, steps=steps, num_samples=config.num_samples,
                             batch_size=min(128, config.num_samples))  # fmt: skip
    noise = [jax.random.key(config.seed + i) for i in range(2)]
    x_T = subject.noise(denoiser, 1, config.seed)
    distance = functools.partial(metrics.frechet_distance, num_groups=config.num_groups)

    @functools.cache
    def full():
        """Samples on the common noise, and features of them and of samples of other noise."""
        x, other = draw(denoiser, key=noise[0]), draw(denoiser, key=noise[1])
        return x, features_fn(x), features_fn(other)

    def features_fn(samples):
        return of_images(seen_fn(samples))

    def world(seed: int, words: str) -> table_of.World:
        return table_of.World(here.calibration, steps, config.sites, table_of.key_of(seed, words),
                              config.train_steps, config.rate, config.num_noises)  # fmt: skip

    chosen = config.techniques or tuple(table_of.SURVEY)
    seeds = [config.seed + 1 + k for k in range(config.num_seeds)]
    forms = (table_of.PLAIN, table_of.BEST)
    keys = [(seed, words, technique, form) for words in config.recipes for seed in seeds
            for technique in chosen for form in forms]  # fmt: skip
    parts = {", ".join(map(str, key)): key for key in keys}

    @functools.cache
    def plain_operations(words: str) -> float:
        q = precision.quantize(here.calibration, words, sites=config.sites)
        return costs.operations(q, x_T, steps)

    def measure(part: str):
        seed, words, technique, form = parts[part]
        row = {"kind": "run", "seed": seed, "recipe": words, "technique": technique, "form": form}
        own, start = world(seed, words), time.perf_counter()
        try:
            made_of = table_of.forms(own, *summary.widths_of(words))[technique, form]()
            draft = strategies.improve(
                here.calibration, made_of.recipe, made_of.cures, steps,
                jax.random.fold_in(own.key, 1), num_samples=config.num_calibration,
                num_calls=config.num_steps, sites=config.sites, **made_of.options,
            )  # fmt: skip
        except (ValueError, FloatingPointError) as failure:
            return {}, row | {"failure": str(failure)}
        seconds = time.perf_counter() - start
        q = draft.quantized()
        (x, seen, other), x_hat = full(), draw(q, key=noise[0])
        errors = np.asarray(prediction.root_mean_square(x_hat - x))
        found = features_fn(x_hat)
        told = {"frechet": distance(found, seen), "floor": distance(other, seen)}
        if images is not None:
            real = of_images(images)
            told |= {"frechet_data": distance(found, real), "float_data": distance(seen, real)}
        return {"errors": errors}, row | {
            "what": made_of.words, "features": eyes.name,
            "rmse": float(np.sqrt(np.mean(errors**2))), "median": float(np.median(errors)),
            **{key: [each.value, each.low, each.high] for key, each in told.items()},
            **costs.row(draft, config.sites, config.num_steps),
            "overhead": costs.operations(q, x_T, steps) / plain_operations(words) - 1,
            "evaluations": draft.bill.evaluations, "learned": draft.bill.optimizer_steps,
            "seconds": seconds,
        }  # fmt: skip

    which = dict.fromkeys(("recipes", "techniques", "num_seeds"))  # parts are kept
    mark = results.fingerprint(dataclasses.asdict(config) | which, here.mark())
    done = command.parts(parts, measure, mark, **options)
    errors = {parts[part]: arrays["errors"] for part, (arrays, _) in done.items() if arrays}
    rows = [row for _, row in done.values()]
    return command.by_part(done), rows + summary.rows(errors, rows, config.seed)


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"num_steps": 4, "num_samples": 40, "num_groups": 4, "num_calibration": 4,
           "train_steps": 5, "num_noises": 4, "recipes": ("W4A4",)},
)  # fmt: skip
