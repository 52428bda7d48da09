"""Every metric of quantized samples, beside full-precision samples and the noise floor.

    python -m experiments.evaluate --checkpoint fashion_dit --recipe W8A8 W4A8
    python -m experiments.evaluate --data <folder of images>
    python -m experiments.evaluate --expected --implementation package.module:make

Full-precision and quantized samples share their noise and conditions: distances between them are
of pairs. The floor is the distance of full-precision samples to as many of other noise. Networks
that know classes draw as many of each. Features and classes are those of the shipped classifier of
a network's data, if there is one (`networks.shipped_for`), else features are random convolutions,
of a video the mean over frames; or what `--features` and `--probabilities` name. Distances are
called by them. Videos have their flicker and temporal consistency too.

Of distances without a bias, which are zero in the mean where rounding changes nothing, p is that of
their value over the standard error of the jackknife, after Holm over all recipes and distances.
Results say which protocol they follow; those of two protocols are not put in one table.

With `--expected` the error of each recipe is forecast from the full-precision run, and what was
measured gets a verdict: within what rounding explains, or a bug and where to look first; distances
to float samples are predicted too, those of the samples that `predict_errors` says. With
`--implementation` it is your implementation of each recipe that is evaluated.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from experiments.evaluate import plots
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import diffusion, measures, metrics, precision, results, verdicts
from qdiffjax._checks import require
from qdiffjax.analysis.errors import prediction, runs
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks import data, denoisers
from qdiffjax.precision.settings import SITES
from qdiffjax.precision.words import recipe_of

RANDOM = "random"  # features that need no training
PIXELS = "pixels"  # the numbers of the samples themselves, as of vectors
NUM_JUDGED = 16  # samples of a verdict
UNBIASED = ("Frechet, infinite samples, to float", "KID to float", "MMD^2 to float")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    recipe: tuple[str, ...] = option(
        ("W8A8", "W6A6", "W4A8", "W4A4"), "Recipes in words, see `precision.parse_recipe`.",
        each=precision.parse_recipe,
    )  # fmt: skip
    sampler: str = option("ddim", "Sampler.", choices=subject.SAMPLERS)
    num_steps: int = option(20, "Steps of the sampler.", least=2)
    guidance: float = option(1.0, "Scale of classifier-free guidance by classes; 1 is without.")
    num_samples: int = option(1024, "Samples of each set.", least=4)
    num_groups: int = option(20, "Groups that the jackknife leaves out in turn.", least=2)
    batch_size: int = option(128, "Samples drawn at a time.", least=1)
    data: str = option("", "Images to compare with, see `networks.data.load`; none without.")
    features: str = option(
        "", "Your features, package.module:function of samples, 'random' for random convolutions, "
        "or 'pixels' for the samples themselves; those of the shipped classifier without, if there "
        "is one.",
    )  # fmt: skip
    probabilities: str = option(
        "",
        "Your classifier, package.module:function from samples to probabilities; the shipped "
        "one without, if there is one.",
    )
    expected: bool = option(False, "Forecast each error, and judge what was measured.")
    implementation: str = option(
        "", "What is evaluated as each recipe, package.module:make of (denoiser, steps, words), a "
        "`Quantized` or a function (x, t[, cond]) -> eps; the recipe itself without.",
    )  # fmt: skip
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse fewer than two samples for each group."""
        require(self.num_samples >= 2 * self.num_groups, "num_samples", got=self.num_samples,
                expected=f"at least {2 * self.num_groups}, two for each group",
                remedy="draw more, or take fewer groups")  # fmt: skip


def protocol(config: Config) -> str:
    """Return the words that two evaluations must share to be compared."""
    images = f"data {config.data.rstrip('/').split('/')[-1]}" if config.data else "no data"
    guided = f"guidance {config.guidance:g}" if config.guidance != 1 else ""
    parts = (metrics.PROTOCOL, config.implementation, guided, seen_by(config).name,
             config.probabilities, f"{config.sampler} of {config.num_steps}",
             f"{config.num_samples} samples", images)  # fmt: skip
    return "; ".join(filter(None, parts))


def seen_by(config: Config) -> subject.Eyes:
    """Return the features and classes of a config: yours, of a shipped classifier, or random."""
    words = {RANDOM: subject.Eyes(), PIXELS: subject.Eyes(PIXELS, np.asarray)}
    if config.features in words:
        eyes = words[config.features]
    elif config.features:
        eyes = subject.Eyes(config.features, _imported(config.features))
    else:
        eyes = subject.eyes_of(config.checkpoint)
    own = _imported(config.probabilities)
    return eyes._replace(probabilities_fn=own or eyes.probabilities_fn)


def run(config: Config, **options):
    """Return arrays and rows of every recipe, and of the tests of all of them; touches no file.

    Arrays of a recipe: errors, the RMSE of each sample [num_samples]. Options as `command.parts`.
    """
    eyes = seen_by(config)
    probabilities_fn = eyes.probabilities_fn
    make = _imported(config.implementation, "a function of (denoiser, steps, words)")
    jax.config.update("jax_default_matmul_precision", "highest")
    denoiser = denoisers.load(config.checkpoint)
    seen, shape = subject.images_of(denoiser)
    images = None
    if config.data:
        images = data.some(data.load(config.data, "test", shape), config.num_samples).images
    num_classes = getattr(denoiser.config, "num_classes", 0)
    if num_classes and denoiser.cond is None:
        denoiser = denoiser.conditioned(np.arange(num_classes))
    if config.guidance != 1:
        require(num_classes, "--guidance", got=f"{config.checkpoint}, which knows no classes",
                expected="a network of classes", remedy="leave it out")  # fmt: skip
        denoiser = denoiser.guided(config.guidance, num_classes)
    steps = subject.SAMPLERS[config.sampler](denoiser.schedule, config.num_steps)
    for words in config.recipe:  # sites and steps that are none, before any work
        recipe_of(words, denoiser.sites(), SITES).which(len(steps.t))
    calibration = precision.calibrate(denoiser, steps, jax.random.key(config.seed + 1_000_003))
    draw = functools.partial(measures.sample, steps=steps, num_samples=config.num_samples,
                             batch_size=config.batch_size)  # fmt: skip
    labels = np.arange(config.num_samples) % num_classes if num_classes else None
    keys = [jax.random.key(config.seed + i) for i in range(4)]

    compare = functools.partial(
        metrics.compare, key=keys[2], features_fn=eyes.features_of(shape),
        features=eyes.name, num_groups=config.num_groups,
    )  # fmt: skip

    @functools.cache
    def full() -> tuple:
        """Samples on the common noise, these as they are seen, and those on other noise."""
        x = draw(denoiser, key=keys[0])
        return x, seen(x), seen(draw(denoiser, key=keys[1]))

    @functools.cache
    def quantized() -> dict[str, precision.Quantized]:
        own = [precision.quantize(calibration, words) for words in config.recipe]
        return dict(zip(config.recipe, precision.alike(own, steps), strict=True))

    def measure(words: str):
        x, y, independent = full()
        suspect = make(denoiser, steps, words) if make else quantized()[words]
        x_hat = draw(as_model(denoiser, suspect), key=keys[0])
        y_hat = seen(x_hat)
        found = compare(y, y_hat, images, independent=independent,
                        probabilities_fn=probabilities_fn, labels=labels)  # fmt: skip
        errors = np.asarray(prediction.root_mean_square(x_hat - x))
        p = [probabilities_fn(a) for a in (y, y_hat)] if probabilities_fn else None
        return {"errors": errors}, {
            "kind": "recipe", "recipe": words, "protocol": protocol(config),
            "rmse": float(np.sqrt(np.mean(errors**2))), "median": float(np.median(errors)),
            "metrics": found.rows(),
            **({"classes": by_class(errors, p[0], p[1], labels)} if p else {}),
            **(expected(words, suspect) if config.expected else {}),
        }  # fmt: skip

    def expected(words: str, suspect) -> dict:
        """What rounding explains, of the typical error and of distances."""
        claimed = quantized()[words]
        own = predicted_pairs(claimed, steps, keys[0], config.num_samples, config.batch_size)
        told = judged(claimed, suspect, steps, keys[3])
        told["expected"]["metrics"] = compare(*map(seen, own)).rows()
        return told

    params = (np.asarray(a) for a in jax.tree.leaves(denoiser.params))
    which = {"recipe": None}  # parts are kept if others are added
    mark = results.fingerprint(dataclasses.asdict(config) | which, protocol(config), *params)
    done = command.parts(config.recipe, measure, mark, **options)
    rows = [row for _, row in done.values()]
    return command.by_part(done), [*rows, tests(rows, config.num_groups)]


def _imported(reference: str, what: str = "a function of samples") -> Callable | None:
    return denoisers.imported(reference, what) if reference else None


def as_model(denoiser: Denoiser, suspect) -> Denoiser | precision.Quantized:
    """Return what `measures.sample` draws of: a suspect that is a function becomes a denoiser."""
    if isinstance(suspect, precision.Quantized):
        return suspect
    return Denoiser(lambda params, x, t, *cond: suspect(x, t, *cond), {}, denoiser.schedule,
                    denoiser.shape, cond=denoiser.cond)  # fmt: skip


def predicted_pairs(q, steps, key, num_samples: int, batch_size: int) -> tuple:
    """Return full-precision samples of a key, and those that `predict_errors` makes of them."""
    pairs = [
        measures.program(_pair)(*start, steps)
        for start in measures.starts(q, steps, key, num_samples, None, batch_size, False)
    ]
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def _pair(q, x_T, key, steps):
    full = precision.full_call(q)
    xs = diffusion.sample(full, x_T, steps, key=key).states
    errors = prediction.predict_errors(q, xs, steps)
    x, e = (runs.current(runs.at(leaf, -1), steps) for leaf in (xs, errors))
    return x, x + e


def judged(claimed: precision.Quantized, suspect, steps, key) -> dict:
    """Return what rounding explains, what was measured on the same noise, and the verdict."""
    found = verdicts.verdict(claimed, suspect, steps, key, NUM_JUDGED)
    value, low, high = found.forecast
    return {"expected": {
        "forecast": value, "low": low, "high": high, "measured": found.measured,
        "ratio": found.ratio, "is_bug": found.is_bug, "site": found.site, "step": found.step,
        "verdict": found.sentence,
    }}  # fmt: skip


def by_class(errors, p, p_hat, labels=None) -> list[dict]:
    """Return a row for each class: errors, flips of labels, agreement with what was drawn.

    Args:
      errors: RMSE of each sample [num].
      p, p_hat: probabilities of float and quantized samples [num, classes].
      labels: classes that were drawn [num]; None takes what the classifier says of float samples.
    """
    full, own = np.argmax(p, 1), np.argmax(p_hat, 1)
    drawn = full if labels is None else labels
    groups = {int(c): drawn == c for c in np.unique(drawn)}
    return [
        {"class": c, "num": int(of.sum()), "rmse": float(np.sqrt(np.mean(errors[of] ** 2))),
         "flips": float(np.mean(full[of] != own[of])), "agreement": float(np.mean(own[of] == c)),
         "float_agreement": float(np.mean(full[of] == c))}
        for c, of in groups.items()
    ]  # fmt: skip


def tests(rows, num_groups: int) -> dict:
    """Return the row of tests: which distance sees which recipe at all."""
    cells = [(row["recipe"], name, plots.cell(row, name)) for row in rows for name in UNBIASED]
    p = [p_of_zero(cell, num_groups) for *_, cell in cells]
    return {"kind": "tests", "protocol": rows[0]["protocol"], "tests": [
        {"recipe": words, "name": name, "p": own, "holm": adjusted}
        for (words, name, _), own, adjusted in zip(cells, p, metrics.holm(p), strict=True)
    ]}  # fmt: skip


def p_of_zero(cell, num_groups: int) -> float:
    """Return the two-sided p of a value with the jackknife's interval, if zero is true."""
    from scipy import stats

    half = cell["high"] - cell["value"]
    if half == 0:
        return float(cell["value"] == 0)
    ratio = abs(cell["value"]) / half * stats.t.ppf(0.975, num_groups - 1)
    return float(2 * stats.t.sf(ratio, num_groups - 1))


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"recipe": ("W8A8", "W4A4"), "num_steps": 4, "num_samples": 64, "num_groups": 8},
)  # fmt: skip
