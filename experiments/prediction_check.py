"""The error predicted from the full-precision run alone, against the measured one.

    python -m experiments.prediction_check

Four predictions, none of which runs the quantized sampler:

  first order   local errors at the full-precision states, propagated to first order
  frozen        the same local errors, injected into a second full-precision run
  off path      local errors as far from the full-precision run as the quantized one is
  predicted     the same, with the rounding of input and output followed: `predict_errors`

Then the input alone, rounded, against the number of steps. A deviation below half a step of the
grid leaves the rounded input as it is, so that the network does not counteract it and it grows with
the sampler's open loop: the error does not fall with the number of steps, which frozen local errors
say it does.

RMSE over all samples and pixels; ratios are predicted over measured, with 95 % bootstrap intervals.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from experiments.harness import command, networks, subject
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import compiling, diffusion, results
from qdiffjax._checks import require
from qdiffjax.analysis.errors import prediction
from qdiffjax.networks import denoisers
from qdiffjax.precision import full_call, parse_shorthand, quantized_call


def check_widths(text: str) -> None:
    """Refuse widths that are not of both weights and activations; raises ValueError."""
    require(None not in parse_shorthand(text), got=f"the widths {text!r}",
            expected="both, as W8A8",
            remedy="give a width of weights and one of activations")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoints: tuple[str, ...] = option(
        ("fashion_unet", "fashion_dit", "fashion_latent"),
        "Folders of checkpoints, or names of shipped ones.",
        each=subject.check_checkpoint,
    )
    widths: tuple[str, ...] = option(
        ("W8A8", "W6A6", "W6A8", "W4A8"), "Widths of weights and activations.", each=check_widths
    )
    num_steps: int = option(50, "Steps of DDIM.", least=2)
    input_steps: tuple[int, ...] = option(
        (10, 20, 50, 100, 200),
        "Steps of the runs whose input alone is rounded, to the bits of the first width.",
        least=2,
    )
    num_samples: int = option(128, "Number of samples.", least=2)
    edge_margin: float = option(
        1.2, "Factor on the calibrated ranges of the network's input and output.", above=0
    )
    seed: int = command.seed()


def frozen(q, xs, steps):
    """Return errors [N+1, batch, ...] of local errors frozen at the full-precision states.

    That is `predict_errors` of every sample alone, with no site followed.
    """
    one = lambda x: prediction.predict_errors(q, x[:, None], steps, followed=())[:, 0]  # noqa: E731
    return jax.vmap(one, in_axes=1, out_axes=1)(xs)


PREDICTIONS: dict[str, Callable] = {
    "first order": prediction.predict_first_order,
    "frozen": frozen,
    "off path": functools.partial(prediction.predict_errors, followed=()),
    "predicted": prediction.predict_errors,
}


class Case(NamedTuple):
    """A network on one grid of steps: which sites are rounded, and what predicts the error."""

    checkpoint: str
    num_steps: int
    sites: tuple[str, ...]
    predictions: tuple[str, ...]


class Context(NamedTuple):
    """What all widths of a case share.

    full, quantized: (q, x_T) -> states; predict: (q, xs) -> final errors of every prediction.
    """

    subject: subject.Subject
    x_T: jax.Array
    full: Callable
    quantized: Callable
    predict: Callable


def prepare(config: Config, case: Case) -> Context:
    """Load the network, calibrate it and compile its runs and its predictions."""
    steps_of = lambda schedule: diffusion.ddim(schedule, case.num_steps)  # noqa: E731
    calibrated = subject.prepare(case.checkpoint, steps_of, case.sites, config.seed)
    steps = steps_of(calibrated.denoiser.schedule)
    return Context(
        calibrated.widened(config.edge_margin),
        subject.noise(calibrated.denoiser, config.num_samples, config.seed),
        compiling.compiled(lambda q, x: diffusion.sample(full_call(q), x, steps).states),
        compiling.compiled(lambda q, x: diffusion.sample(quantized_call(q), x, steps).states),
        compiling.compiled(
            lambda q, xs: [PREDICTIONS[name](q, xs, steps)[-1] for name in case.predictions]
        ),
    )


def measure(context: Context, case: Case, bits) -> tuple[dict, dict]:
    """Return RMS errors of the samples [batch], measured and predicted, and the row of ratios."""
    q = context.subject.quantized(*bits)
    xs = context.full(q, context.x_T)
    arrays = {"measured": rms(context.quantized(q, context.x_T)[-1] - xs[-1])}
    arrays |= dict(zip(case.predictions, map(rms, context.predict(q, xs)), strict=True))
    row = {"measured": float(np.sqrt(np.mean(arrays["measured"] ** 2)))}
    for name in case.predictions:
        row |= _interval(name, arrays[name], arrays["measured"])
    if bits[0] is None:
        row["step"] = float(q.site_inputs["input"].activations[0].scale)
    return arrays, row


def rms(errors) -> np.ndarray:
    """Return the RMS of each sample [batch], for sums in float64."""
    return np.asarray(prediction.root_mean_square(errors), np.float64)


def _interval(name: str, predicted, measured) -> dict[str, float]:
    """Return the ratio of two RMS over all samples, and its 95 % interval."""
    interval = stats.bootstrap(
        (predicted, measured), _ratio, paired=True, n_resamples=1000, method="percentile", rng=0
    ).confidence_interval
    return {name: float(_ratio(predicted, measured)), f"{name}_low": float(interval.low),
            f"{name}_high": float(interval.high)}  # fmt: skip


def _ratio(predicted, measured, axis=-1):
    return np.sqrt(np.sum(predicted**2, axis=axis) / np.sum(measured**2, axis=axis))


def run(config: Config, **options):
    """Return arrays "<part>/<prediction>" [num_samples] and a row a part; see `command.parts`."""
    _, input_bits = parse_shorthand(config.widths[0])
    names = networks.titles(config.checkpoints)
    cases: dict[str, tuple[str, str, Case, Any]] = {}
    for name, path in names.items():
        case = Case(path, config.num_steps, subject.ALL_BUT_LAST, tuple(PREDICTIONS))
        cases |= {f"{name} {w}": (name, w, case, parse_shorthand(w)) for w in config.widths}
    for name, path in names.items():
        for k in config.input_steps:
            case = Case(path, k, ("input",), ("frozen",))
            cases[f"{name} input {k}"] = name, f"input {input_bits}", case, (None, input_bits)
    context = functools.lru_cache(maxsize=1)(functools.partial(prepare, config))

    def part(key: str):
        name, rounded, case, bits = cases[key]
        arrays, row = measure(context(case), case, bits)
        return arrays, {"checkpoint": name, "rounded": rounded, "steps": case.num_steps} | row

    done = command.parts(cases, part, mark(config), **options)
    return command.by_part(done), [row for _, row in done.values()]


def mark(config: Config) -> str:
    """Return the fingerprint of what a part depends on besides its name.

    Raises:
      ValueError: more steps than a checkpoint has.
    """
    loaded = [denoisers.load(c) for c in config.checkpoints]
    for denoiser in loaded:
        for num_steps in (config.num_steps, *config.input_steps):
            diffusion.ddim(denoiser.schedule, num_steps)  # refuses more than there are
    settings = dataclasses.asdict(config) | {"checkpoints": (), "input_steps": ()}
    leaves = jax.tree.leaves([denoiser.params for denoiser in loaded])
    return results.fingerprint(settings, *map(np.asarray, leaves))


def table(rows):
    """Yield a line for each row: the measured error and the ratios of the predictions."""
    for row in rows:
        ratios = [
            f"{name} {tables.number(row[name])} ({tables.number(row[name + '_low'])} to "
            f"{tables.number(row[name + '_high'])})" for name in PREDICTIONS if name in row
        ]  # fmt: skip
        head = f"{row['checkpoint']:15s} {row['rounded']:8s} {row['steps']:4d} steps"
        yield f"{head}  measured {tables.number(row['measured'])}  " + "  ".join(ratios)


EXPERIMENT = command.experiment(Config, run, table=table)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
