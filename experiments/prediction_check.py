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
import sys
from pathlib import Path

import jax
import numpy as np
from scipy import stats

from experiments.harness import old_command as command
from experiments.harness import store, subject, tables
from qdiffjax import compiling, diffusion
from qdiffjax.analysis.errors import prediction
from qdiffjax.networks import denoisers
from qdiffjax.precision import calibration, full_call, parse_shorthand, quantized_call

PREDICTIONS = ("first order", "frozen", "off path", "predicted")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoints: tuple[str, ...] = ("fashion_unet", "fashion_dit", "fashion_latent")
    widths: tuple[str, ...] = ("W8A8", "W6A6", "W6A8", "W4A8")
    num_steps: int = 50
    input_steps: tuple[int, ...] = (10, 20, 50, 100, 200)
    num_samples: int = 128
    edge_margin: float = 1.2
    seed: int = 0


HELP = {
    "checkpoints": "folders of checkpoints, or names of shipped ones",
    "widths": "of weights and activations, as W8A8",
    "num_steps": "DDIM steps",
    "input_steps": "DDIM steps of the runs whose input alone is rounded, to the bits of the first "
    "width",
    "num_samples": "samples",
    "edge_margin": "factor on the calibrated ranges of the network's input and output",
    "seed": "of everything random",
}


class Study:
    """One network on one grid of steps, and its compiled functions."""

    def __init__(self, config: Config, checkpoint: str, num_steps: int, globs):
        steps_of = lambda schedule: diffusion.ddim(schedule, num_steps)  # noqa: E731
        found = subject.prepare(checkpoint, steps_of, globs, config.seed)
        ranges = calibration.widened(found.ranges, ("input", "output"), config.edge_margin)
        self.subject = dataclasses.replace(found, ranges=ranges)
        steps = self.steps = steps_of(found.denoiser.schedule)
        self.x_T = subject.noise(found.denoiser, config.num_samples, config.seed)
        compiled = compiling.compiled
        self.full = compiled(lambda q, x: diffusion.sample(full_call(q), x, steps).states)
        self.run = compiled(lambda q, x: diffusion.sample(quantized_call(q), x, steps).states)
        self.frozen = compiled(lambda q, xs: frozen(q, xs, steps)[-1])
        self.predict = compiled(lambda q, xs: [
            prediction.predict_first_order(q, xs, steps)[-1],
            frozen(q, xs, steps)[-1],
            prediction.predict_errors(q, xs, steps, followed=())[-1],
            prediction.predict_errors(q, xs, steps)[-1],
        ])  # fmt: skip

    def measure(self, text: str) -> tuple[dict, dict]:
        """Return per-sample RMS errors [batch], measured and predicted, and the row of ratios."""
        q = self.subject.quantized(*parse_shorthand(text))
        xs = self.full(q, self.x_T)
        arrays = {"measured": rms(self.run(q, self.x_T)[-1] - xs[-1])}
        arrays |= dict(zip(PREDICTIONS, map(rms, self.predict(q, xs)), strict=True))
        return arrays, _row(arrays)

    def measure_input(self, bits: int) -> tuple[dict, dict]:
        """Return the same for a rounded input and nothing else, with frozen local errors."""
        q = self.subject.quantized(None, bits)
        xs = self.full(q, self.x_T)
        step = q.site_inputs["input"].activations[0].scale
        arrays = {"measured": rms(self.run(q, self.x_T)[-1] - xs[-1]),
                  "frozen": rms(self.frozen(q, xs))}  # fmt: skip
        return arrays, _row(arrays) | {"step": float(step)}


def frozen(q, xs, steps):
    """Errors [N+1, batch, ...] of local errors frozen at the full-precision states.

    That is `predict_errors` of every sample alone, with no site followed.
    """
    one = lambda x: prediction.predict_errors(q, x[:, None], steps, followed=())[:, 0]  # noqa: E731
    return jax.vmap(one, in_axes=1, out_axes=1)(xs)


def rms(errors) -> np.ndarray:
    """RMS of each sample [batch], for sums in float64."""
    return np.asarray(prediction.root_mean_square(errors), np.float64)


def _row(arrays: dict) -> dict:
    measured = arrays["measured"]
    row: dict = {"measured": float(np.sqrt(np.mean(measured**2)))}
    for name in set(arrays) - {"measured"}:
        pair = (arrays[name], measured)
        found = stats.bootstrap(
            pair, _ratio, paired=True, n_resamples=1000, method="percentile", rng=0
        ).confidence_interval
        row |= {name: float(_ratio(*pair)), f"{name}_low": float(found.low),
                f"{name}_high": float(found.high)}  # fmt: skip
    return row


def _ratio(predicted, measured, axis=-1):
    return np.sqrt(np.sum(predicted**2, axis=axis) / np.sum(measured**2, axis=axis))


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError or OSError."""
    for text in config.widths:
        if None in parse_shorthand(text):
            raise ValueError(f"got the widths {text!r}, expected both, as W8A8.")
    for name in config.checkpoints:
        denoisers.find_checkpoint(name)
    if config.num_samples < 2 or min(config.num_steps, *config.input_steps) < 2:
        raise ValueError("expected at least 2 samples and 2 steps.")
    if not config.edge_margin > 0:
        raise ValueError(f"got edge_margin = {config.edge_margin}, expected a positive factor.")


def run(config: Config, **options):
    """Return arrays "<part>/<prediction>" [num_samples] and a row a part; see `command.parts`."""
    check(config)
    bits = parse_shorthand(config.widths[0]).activation
    names = {Path(c).name: c for c in config.checkpoints}
    wanted = {f"{n} {w}": (n, w) for n in names for w in config.widths}
    inputs = {f"{n} input {k}": (n, k) for n in names for k in config.input_steps}
    studies: dict[tuple, Study] = {}

    def study(*what):
        if what not in studies:
            studies.clear()  # one compilation's memory at a time
            studies[what] = Study(config, *what)
        return studies[what]

    def measure(part: str):
        if part in wanted:
            name, text = wanted[part]
            where = (names[name], config.num_steps, subject.ALL_BUT_LAST)
            arrays, row = study(*where).measure(text)
            return arrays, {"checkpoint": name, "rounded": text, "steps": config.num_steps} | row
        name, num_steps = inputs[part]
        arrays, row = study(names[name], num_steps, ("input",)).measure_input(bits)
        return arrays, {"checkpoint": name, "rounded": f"input {bits}", "steps": num_steps} | row

    found = command.parts([*wanted, *inputs], measure, mark(config), **options)
    return command.by_part(found), [row for _, row in found.values()]


def mark(config: Config) -> str:
    """Fingerprint of what a part depends on besides its name."""
    loaded = [denoisers.load(denoisers.find_checkpoint(c)).params for c in config.checkpoints]
    settings = dataclasses.asdict(config) | {"checkpoints": (), "input_steps": ()}
    return store.fingerprint(settings, *map(np.asarray, jax.tree.leaves(loaded)))


def print_rows(rows: list[dict]) -> None:
    """Print measured errors and ratios of the predictions."""
    for row in rows:
        ratios = [
            f"{name} {tables.number(row[name])} ({tables.number(row[name + '_low'])} to "
            f"{tables.number(row[name + '_high'])})" for name in PREDICTIONS if name in row
        ]  # fmt: skip
        head = f"{row['checkpoint']:15s} {row['rounded']:8s} {row['steps']:4d} steps"
        print(f"{head}  measured {tables.number(row['measured'])}  " + "  ".join(ratios))


EXPERIMENT = command.Experiment(
    "prediction_check", __doc__ or "", Config, HELP, check, run, lambda folder: None, print_rows
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
