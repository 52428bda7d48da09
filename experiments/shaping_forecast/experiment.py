"""The error of shaped weights by the number of steps, forecast from full-precision gains alone.

    python -m experiments.shaping_forecast                         the shipped DiT
    python -m experiments.shaping_forecast --checkpoint fashion_unet

Weights are rounded once, with fresh bits, or by sigma-delta sequences. Forecast is the root of
E|x_0 error|^2 over phases, to first order (`errors.sequence_variances`; of one rounding
`predict_errors`), on a few samples; measured
is the RMSE of runs of many samples, each seed of phases on a share of them, and on the samples of
the forecast with seeds of their own. A width at which no rounding matters is the control of
what does not come from rounding. The slope is that of the measured error in the number of steps;
with the last call in full precision, whose loss nothing makes up for, what is left is the part that
the sampler integrates away.

The floor is the mean error over phases, of second order (`errors.sequence_bias`): measured over
many seeds of phases, predicted from curvature alone. Both are known up to noise, so that their
squares are products of two independent halves, and what correcting samples by the prediction gains
is the ratio of the errors with and without it.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.harness import command, intervals, subject
from experiments.harness.command import option
from experiments.shaping_forecast import plots
from qdiffjax import compiling, diffusion, precision, quant, results
from qdiffjax.analysis.errors import prediction, runs, sequences


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    num_steps: tuple[int, ...] = option((10, 20, 50, 100), "Steps of DDIM.", least=2)
    weight_bits: tuple[int, ...] = option((4, 6, 8, 16), "Widths of weights.", least=2, most=16)
    num_samples: int = option(32, "Samples of the RMSE, a multiple of the seeds.", least=2)
    num_forecast: int = option(8, "Samples of the forecast, the first of those.", least=1)
    num_probes: int = option(2, "Probes of the forecast.", least=2)
    num_seeds: int = option(4, "Seeds of phases, which share the samples out.", least=1)
    num_phases: int = option(32, "Seeds of phases of the samples of the forecast.", least=4)
    num_draws: int = option(32, "Draws of the predicted mean error.", least=4)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


# {way: (toggle function, whether the last call is in full precision, whether it has a floor)}
WAYS: dict[str, tuple[Any, bool, bool]] = {
    "nearest": (None, False, False), "fresh bits": (quant.fresh_bits, False, True),
    "sigma-delta": (quant.sigma_delta, False, True),
    "sigma-delta, last in full": (quant.sigma_delta, True, False),
}  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows of every number of steps; touches no file.

    Arrays of each: <width>/<way>, the RMSE of each sample [seeds, samples of a seed]. Options as
    `command.parts`.
    """
    subject.check_shares(config)
    most = max(config.num_steps)
    here = subject.prepare(
        config.checkpoint, lambda s: diffusion.ddim(s, most), config.sites, config.seed
    )
    denoiser = here.denoiser
    x_T = subject.noise(denoiser, config.num_samples, config.seed)
    size = np.prod(x_T.shape[1:])

    def quantized(calibration, num_steps: int, bits: int, toggle_fn, is_last_full: bool):
        rounding: dict[str, Any] = {"adjust_fn": None}
        if toggle_fn is not None:
            rounding["round_fn"] = precision.shaped(jax.random.key(config.seed), toggle_fn)
        recipe = f"W{bits}; steps {num_steps - 1}: float" if is_last_full else f"W{bits}"
        return precision.quantize(calibration, recipe, sites=config.sites, **rounding)

    def steps_of(num: int):
        steps = diffusion.ddim(denoiser.schedule, num)
        return steps, subject.observed(here, steps, config.seed).calibration  # for its steps

    def measure(num: int):
        steps, calibration = steps_of(num)
        shares = subject.shares_of_states(denoiser, x_T, steps, config.num_seeds)
        some = x_T[: config.num_forecast]
        few = subject.full_states(denoiser, some, steps)
        phases, keys, probe_key = jax.random.split(jax.random.key(config.seed + 1), 3)
        probes = runs.signs(probe_key, config.num_probes, some)
        errors = compiling.compiled(lambda q, key, xs: subject.sample_errors(
            precision.redrawn(q, key), xs, steps
        ))  # fmt: skip
        ends = compiling.compiled(lambda q, keys: jax.lax.map(
            lambda key: subject.final_errors(precision.redrawn(q, key), few, steps), keys
        ))  # fmt: skip
        biases = compiling.compiled(lambda q, key: sequences.sequence_bias(
            q, some, steps, phases=key, num=config.num_draws // 2
        ).value)  # fmt: skip
        arrays, sequenced = {}, {}
        rows: list[dict[str, Any]] = []
        for bits in config.weight_bits:
            for name, (toggle_fn, is_last_full, has_floor) in WAYS.items():
                q = quantized(calibration, num, bits, toggle_fn, is_last_full)
                seeds = jax.random.split(jax.random.key(config.seed), config.num_seeds)
                values = np.stack(
                    [errors(q, seed, xs) for seed, (xs, _) in zip(seeds, shares, strict=True)]
                )
                values = values if toggle_fn else values.reshape(1, -1)
                arrays[f"{bits}/{name}"] = values
                num_phases = config.num_phases if toggle_fn else 1
                many = np.asarray(ends(q, jax.random.split(phases, num_phases)))
                row = {"num_steps": num, "bits": bits, "way": name,
                       "rmse": float(subject.rms(values)),
                       "rmse_of_forecast_samples": float(subject.rms(many))}  # fmt: skip
                if toggle_fn is not None:
                    sequenced[len(rows)] = q
                if has_floor:
                    told = np.stack([biases(q, key) for key in jax.random.split(keys)])
                    row |= floor(many, told)
                rows.append(row | intervals.of_shares(values, config.seed))
        forecast = compiling.compiled(
            lambda qs: [sum(told.values()) for told in sequences.variances_of_sequences(
                qs, some, steps, probes)]
        )  # fmt: skip
        told = forecast(list(sequenced.values()))
        for place, variances in zip(sequenced, told, strict=True):
            rows[place]["forecast"] = float(np.sqrt(float(variances.mean()) / size))
        return arrays, rows

    def predict_once(num: int):
        steps, calibration = steps_of(num)
        few = subject.full_states(denoiser, x_T[: config.num_forecast], steps)
        predicted = compiling.compiled(lambda q: prediction.predict_errors(q, few, steps)[-1])
        qs = {bits: quantized(calibration, num, bits, None, False) for bits in config.weight_bits}
        return {}, {str(bits): float(subject.rms(predicted(q))) for bits, q in qs.items()}

    parts = {f"{num} steps{words}": (num, fn) for num in config.num_steps
             for words, fn in (("", measure), (", once", predict_once))}  # fmt: skip
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts(parts, lambda part: parts[part][1](parts[part][0]), mark, **options)
    rows = []
    for num in config.num_steps:
        once = done[f"{num} steps, once"][1]
        rows += [row | ({} if "forecast" in row else {"forecast": once[str(row["bits"])]})
                 for row in done[f"{num} steps"][1]]  # fmt: skip
    return command.by_part(done), rows


def floor(errors, predicted) -> dict[str, float]:
    """Return the floor measured and predicted, their alignment, and the gain of a correction.

    Args:
      errors: of samples, by seed of phases [phases, samples, ...].
      predicted: mean error, two independent estimates [2, samples, ...].
    """
    halves = np.stack([errors[::2].mean(0), errors[1::2].mean(0)])
    squares = [float(np.mean(a * b)) for a, b in (halves, predicted)]  # unbiased, may be negative
    measured, told = np.sqrt(np.maximum(squares, 0))
    mean = predicted.mean(0)
    common = float(np.mean(errors.mean(0) * mean)) / max(measured * told, 1e-30)
    gain = np.sqrt(np.mean((errors - mean) ** 2) / np.mean(errors**2))
    return {"floor": float(measured), "predicted_floor": float(told), "alignment": common,
            "corrected": float(gain)}  # fmt: skip


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"num_steps": (3, 6), "weight_bits": (8,), "num_samples": 4, "num_forecast": 2,
           "num_seeds": 1, "num_phases": 4, "num_draws": 4},
)  # fmt: skip
