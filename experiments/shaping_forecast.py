"""The error of shaped weights by the number of steps, forecast from full-precision gains alone.

    python -m experiments.shaping_forecast                         the shipped DiT
    python -m experiments.shaping_forecast --checkpoint fashion_unet

Weights are rounded once, with fresh bits, or by sigma-delta sequences. Forecast is the root of
E|x_0 error|^2 over phases, to first order (`errors.sequence_variances`), on a few samples; measured
is the RMSE over phases and samples of runs. A width at which no rounding matters is the control of
what does not come from rounding. The slope is that of the measured error in the number of steps.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import compiling, diffusion, precision, quant, results
from qdiffjax.analysis.errors import runs, site_variances


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    num_steps: tuple[int, ...] = option((10, 20, 50, 100), "Steps of DDIM.", least=2)
    weight_bits: tuple[int, ...] = option((4, 6, 8, 16), "Widths of weights.", least=2, most=16)
    num_samples: int = option(32, "Samples whose error is measured.", least=2)
    num_forecast: int = option(8, "Samples of the forecast, the first of those.", least=1)
    num_probes: int = option(2, "Probes of the forecast.", least=2)
    num_seeds: int = option(3, "Seeds of phases.", least=1)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


WAYS = {"nearest": None, "fresh bits": quant.fresh_bits, "sigma-delta": quant.sigma_delta}


def run(config: Config, **options):
    """Return arrays and rows of every number of steps; touches no file.

    Arrays of each: <width>/<way>, the RMSE of each sample [seeds, samples]. Options as
    `command.parts`.
    """
    most = max(config.num_steps)
    here = subject.prepare(
        config.checkpoint, lambda s: diffusion.ddim(s, most), config.sites, config.seed
    )
    denoiser = here.denoiser
    x_T = subject.noise(denoiser, config.num_samples, config.seed)
    size = np.prod(x_T.shape[1:])

    def quantized(bits: int, toggle_fn, seed: int):
        rounding: dict[str, Any] = {"adjust_fn": None}
        if toggle_fn is not None:
            rounding["round_fn"] = precision.shaped(jax.random.key(seed), toggle_fn)
        return precision.quantize(here.calibration, f"W{bits}", sites=config.sites, **rounding)

    def measure(part: str):
        num = parts[part]
        steps = diffusion.ddim(denoiser.schedule, num)
        xs = subject.full_states(denoiser, x_T, steps)
        errors = compiling.compiled(lambda q: subject.sample_errors(q, xs, steps))
        some = x_T[: config.num_forecast]
        probes = runs.signs(jax.random.key(config.seed + 1), config.num_probes, some)

        forecast = compiling.compiled(
            lambda q: sum(site_variances.sequence_variances(q, some, steps, probes).values())
        )
        arrays, rows = {}, []
        for bits in config.weight_bits:
            for name, toggle_fn in WAYS.items():
                seeds = range(config.seed, config.seed + (config.num_seeds if toggle_fn else 1))
                qs = [quantized(bits, toggle_fn, seed) for seed in seeds]
                values = arrays[f"{bits}/{name}"] = np.stack([errors(q) for q in qs])
                first = values[:, : len(some)]
                row = {"num_steps": num, "bits": bits, "way": name,
                       "rmse": float(subject.rms(values)),
                       "rmse_of_forecast_samples": float(subject.rms(first))}  # fmt: skip
                if toggle_fn is not None:
                    row["forecast"] = float(np.sqrt(float(forecast(qs[0]).mean()) / size))
                rows.append(row)
        return arrays, rows

    parts = {f"{num} steps": num for num in config.num_steps}
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts(parts, measure, mark, **options)
    return command.by_part(done), [row for _, rows in done.values() for row in rows]


def slope(rows) -> float:
    """Return the slope of log rmse in log N, by least squares."""
    if len(rows) < 2:
        return float("nan")
    x, y = (np.log([row[key] for row in rows]) for key in ("num_steps", "rmse"))
    return float(np.polyfit(x, y, 1)[0])


def table(rows) -> list:
    """Return the table on the screen: a line for each width and way."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["bits"], row["way"]), []).append(row)
    steps = list(dict.fromkeys(row["num_steps"] for row in rows))
    by = {(*key, row["num_steps"]): row for key, members in groups.items() for row in members}

    def ratios(key) -> str:
        told = [by[*key, n] for n in steps]
        return " ".join(f"{r['forecast'] / r['rmse_of_forecast_samples']:.2f}" for r in told
                        if "forecast" in r)  # fmt: skip

    spec: list = [("W", lambda key: key[0]), ("rounded", lambda key: key[1])]
    spec += [(f"N = {n}", lambda key, n=n: f"{by[*key, n]['rmse']:.3g}") for n in steps]
    spec += [("slope", lambda key: f"{slope(groups[key]):.2f}"),
             ("forecast / measured", ratios)]  # fmt: skip
    return [tables.columns([*groups], spec, title="RMSE of the samples, weights rounded")]


EXPERIMENT = command.experiment(
    Config, run, table=table,
    quick={"num_steps": (3, 6), "weight_bits": (8,), "num_samples": 4, "num_forecast": 2,
           "num_seeds": 1},
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
