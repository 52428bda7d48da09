"""The survey's seven techniques, each in a plain and a best form, as recipes with cures.

What the survey's Table 1 says of each stands beside it in `SURVEY`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from qdiffjax import precision, quant, strategies
from qdiffjax.precision import OperandFormat, Recipe, SiteBits
from qdiffjax.precision.formats import DYNAMIC
from qdiffjax.sites import match
from qdiffjax.strategies import Cure

PLAIN, BEST = "plain", "best"
SENSITIVE = ("*attention*",)  # what a hybrid trains


class Adjectives(NamedTuple):
    """A line of the survey's Table 1."""

    allocation: str
    training: str
    hardware: str
    advantages: str
    challenges: str


SURVEY = {
    "uniform PTQ": Adjectives(
        "fixed, evenly spaced levels", "post-training only", "very high",
        "simple, hardware-friendly, no retraining", "poor quality under low bitwidths",
    ),
    "non-uniform PTQ": Adjectives(
        "adaptive, density-based", "post-training only", "moderate: tables or nonlinear ops",
        "lower quantization error, preserves distributions", "higher hardware complexity",
    ),
    "QAT": Adjectives(
        "flexible, learned during training", "retraining or fine-tuning", "high",
        "high robustness at low bitwidths", "requires heavy retraining",
    ),
    "hybrid PTQ + QAT": Adjectives(
        "selective, per-module precision", "limited fine-tuning", "high",
        "balance of efficiency and robustness", "complex design, tuning required",
    ),
    "mixed precision": Adjectives(
        "per-layer or per-module bitwidths", "post-training or QAT", "high: widely supported",
        "exploits sensitivity heterogeneity", "requires careful profiling",
    ),
    "timestep-adaptive": Adjectives(
        "stage-dependent bitwidths", "QAT or post-hoc adjustments", "moderate",
        "matches error sensitivity across timesteps", "complex scheduling",
    ),
    "dynamic": Adjectives(
        "input-dependent bitwidths", "on-the-fly, runtime adjustment", "low to moderate",
        "highly adaptive, efficient in practice", "high runtime overhead, less predictable",
    ),
}  # fmt: skip


class Form(NamedTuple):
    """A technique as it is run.

    words: what it is; recipe: of `strategies.improve`; cures: on top; options: of `quantize`.
    """

    words: str
    recipe: Any
    cures: tuple[Cure, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012


class World(NamedTuple):
    """What forms are made from.

    calibration, steps: of the network; sites: globs of those that are quantized; key: of what is
    random; train_steps: optimizer steps of a full training, a hybrid has a fifth; rate: of Adam;
    num_noises: samples of an allocation's first and second part.
    """

    calibration: Any
    steps: Any
    sites: tuple[str, ...]
    key: Any
    train_steps: int
    rate: float
    num_noises: int

    @property
    def num_steps(self) -> int:
        """Calls of the sampler."""
        return len(self.steps.t)


def forms(world: World, weights: int, activations: int) -> dict[tuple[str, str], Callable]:
    """Return {(technique, form): () -> Form}, made when they are asked for.

    Args:
      world: the network and its noise.
      weights, activations: bits on average.
    """
    words = f"W{weights}A{activations}"
    static, dynamic = {"activations": "static"}, {"activations": "dynamic"}
    turn = strategies.rotation(world.key)
    free, held = strategies.cached_time_path(), strategies.compensation(ridge=0.1)
    cured = (turn, strategies.gptq())
    short = max(1, world.train_steps // 5)
    n = world.num_steps
    ends = max(1, round(0.06 * n))

    def trained(steps: int, objective=strategies.distillation, **options) -> Cure:
        return strategies.qat(steps, objective=objective(num_samples=4),
                              learning_rate=world.rate, progress=False, **options)  # fmt: skip

    def codebook(*cures: Cure) -> Callable:
        levels = quant.lloyd_max(weights)
        entry = OperandFormat(levels)
        return lambda: Form(
            f"weights on the {2**weights} levels of Lloyd and Max for a normal law",
            _everywhere(world, SiteBits(entry, _dynamic(activations))),
            cures,
            dynamic,
        )

    def by_width() -> Form:
        wider, narrower = min(8, weights + 2), max(2, weights - 1)
        return Form("first and last layers wider, a rule of thumb",
                    _first_and_last(world, weights, activations, wider, narrower), (),
                    dynamic)  # fmt: skip

    def recommended(*cures: Cure) -> Callable:
        def make() -> Form:
            choices = tuple(sorted({2, 3, 4, 5, 6, 8, weights}))
            found = strategies.recommend(
                world.calibration, world.steps, f"W{weights}", choices, key=world.key,
                sites=world.sites, num_noises=world.num_noises, num_samples=8,
            )  # fmt: skip
            table = {name: bits._replace(activation=_dynamic(activations))
                     for name, bits in found.recipe.bits.items()}  # fmt: skip
            return Form("widths by the algebra of error vectors", Recipe(table), cures, dynamic)

        return make

    middle = f"steps {ends}-{n - 1 - ends}: W{weights}A{activations}"
    last = f"steps {n - max(1, n // 10)}-{n - 1}"
    shaped = f"W{weights} shaped A{activations} shaped"
    return {
        ("uniform PTQ", PLAIN): lambda: Form("nearest, static scales", words, (), static),
        ("uniform PTQ", BEST): lambda: Form(
            "rotation, GPTQ, time path cached, compensation; scales by token", words,
            (free, *cured, held)
        ),
        ("non-uniform PTQ", PLAIN): codebook(),
        ("non-uniform PTQ", BEST): codebook(free, turn, held),
        ("QAT", PLAIN): lambda: Form("distillation", words, (trained(world.train_steps),)),
        ("QAT", BEST): lambda: Form(
            "time path cached, rotation, GPTQ, training of the whole run, compensation", words,
            (free, *cured, trained(world.train_steps, strategies.whole_run), held)
        ),
        ("hybrid PTQ + QAT", PLAIN): lambda: Form(
            "nearest, attention trained", words, (trained(short, sites=SENSITIVE),)
        ),
        ("hybrid PTQ + QAT", BEST): lambda: Form(
            "time path cached, rotation, GPTQ, attention trained by the whole run, compensation",
            words, (free, *cured, trained(short, strategies.whole_run, sites=SENSITIVE), held)
        ),
        ("mixed precision", PLAIN): by_width,
        ("mixed precision", BEST): recommended(free, *cured, held),
        ("timestep-adaptive", PLAIN): lambda: Form(
            f"first and last {ends} of {n} steps at 8 bits", f"W8A8; {middle}"
        ),
        ("timestep-adaptive", BEST): lambda: Form(
            "shaped along the steps, a bit more in the last tenth, time path cached, rotation, "
            "compensation", f"{shaped}; {last}: W{weights + 1} shaped A{activations} shaped",
            (free, turn, held)
        ),
        ("dynamic", PLAIN): lambda: Form("nearest, scales by token at run time", words),
        ("dynamic", BEST): lambda: Form(
            "differences to the step before, with error compensation", f"{words} difference",
            (free, turn, held)
        ),
    }  # fmt: skip


def _dynamic(bits: int) -> OperandFormat:
    return OperandFormat(quant.IntFormat(bits, signed=False), scales=DYNAMIC)


def _everywhere(world: World, bits: SiteBits) -> Recipe:
    sites = {site.name: site for site in world.calibration.sites}
    return Recipe({name: bits if sites[name].weight is not None else SiteBits(None, bits.activation)
                   for name in match(world.calibration.sites, world.sites)})  # fmt: skip


def _first_and_last(world: World, weights: int, activations: int, wider: int, narrower: int):
    """Return a recipe with the first and last layers wider, small ones narrower to pay for it."""
    sites = {site.name: site for site in world.calibration.sites}
    names = list(match(world.calibration.sites, world.sites))
    weighing = [n for n in names if sites[n].weight is not None]
    size = {n: sites[n].parameters for n in weighing}
    table = {n: SiteBits(weights if n in size else None, _dynamic(activations)) for n in names}
    extra = 0
    for name in {weighing[0], weighing[-1]}:
        table[name] = table[name]._replace(weight=wider)
        extra += (wider - weights) * size[name]
    rest = sorted(weighing[1:-1], key=size.__getitem__)
    for name in rest:
        if extra <= 0 or narrower == weights:
            break
        table[name] = table[name]._replace(weight=narrower)
        extra -= (weights - narrower) * size[name]
    return precision.Recipe(table)


def key_of(seed: int, words: str) -> jax.Array:
    """Return the key of what is random in the forms of a seed and widths."""
    return jax.random.fold_in(jax.random.key(2_000_000 + seed), sum(map(ord, words)))
