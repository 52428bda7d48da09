"""A weight rounded once, or anew at every call of the sampler: errors of the samples.

    python -m experiments.shaping                                 the shipped UNet
    python -m experiments.shaping --checkpoint fashion_dit

Weights alone are rounded, by output channel; every product is of weights of `bits` bits. Ways to
round them:

  nearest         once, to the nearest code; scales of the largest weight
  clipped         once, scales of least squared error
  sums kept       once, such that the sum of each output channel stays (`quant.keep_sums`)
  nearest + k     once, at bits + k bits: what periodic rounding stores, but wider products
  fresh bits      at each call one of the two neighbours at random, the weight in the mean
  golden ratio    the same with a sequence of low discrepancy
  noble ratios    the same with a rotation for each element, of sixteen
  sigma-delta     the same such that what was lost is made up for at once: the error is high-pass
                  in the number of the call, and the sampler is a low-pass filter
  periodic k      sigma-delta of period 2^k, stored in bits + k bits
  mean of k       once, at the mean that periodic rounding has: steps of 2^-k of the width's own,
                  where those of nearest + k are smaller by (2^(b-1) - 1) 2^k / (2^(b+k-1) - 1)

All methods see the same noises. Those that draw phases are run with several seeds of them, each on
a share of the noises: what a sample costs buys a noise and a phase that no other has. Intervals
resample the shares, of methods without phases the noises.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from experiments.harness import command, intervals, subject
from experiments.harness.command import option
from experiments.shaping import plots
from qdiffjax import compiling, precision, quant, results
from qdiffjax.analysis.errors import prediction


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    weight_bits: tuple[int, ...] = option((3, 4, 6, 8), "Widths of the products' weights.",
                                          least=2, most=8)  # fmt: skip
    samplers: tuple[str, ...] = option(("ddim",), "Samplers.", choices=subject.SAMPLERS)
    num_steps: tuple[int, ...] = option((10, 20, 50), "Steps of a sampler.", least=1)
    num_samples: int = option(64, "Number of samples, a multiple of the seeds.", least=2)
    num_seeds: int = option(4, "Seeds of phases, which share the samples out.", least=1)
    extra_bits: tuple[int, ...] = option((1, 2, 3, 4), "k of periodic rounding.", least=1, most=8)
    group_size: int = option(32, "Weights that share a scale where they are in groups.", least=2)
    num_predicted: int = option(16, "Samples whose error is predicted.", least=2)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


SHAPED = {"fresh bits": quant.fresh_bits, "golden ratio": quant.golden_ratio,
          "noble ratios": quant.noble_ratios,
          "sigma-delta": quant.sigma_delta}  # fmt: skip


def _mean(call, fraction, phase):
    """The toggle function of a sequence that stays at its mean."""
    return fraction


def methods(bits: int, extra_bits, group_size: int) -> dict[str, tuple[str, dict[str, Any], Any]]:
    """Return {method: (recipe, options of `quantize`, seed of phases -> `round_fn` or None)}."""
    once = {"adjust_fn": None}
    grouped = f"W{bits}g{group_size} mse"

    def drawn(toggle_fn, **options):
        return lambda seed: precision.shaped(jax.random.key(seed), toggle_fn, **options)

    return {
        "nearest": (f"W{bits}", once, None),
        "clipped": (f"W{bits}", once | {"calibrate_fn": quant.mse}, None),
        "sums kept": (f"W{bits}", {}, None),
        "grouped": (grouped, once, None),
        **{f"nearest + {k}": (f"W{bits + k}", once, None) for k in extra_bits},
        **{name: (f"W{bits}", {}, drawn(fn)) for name, fn in SHAPED.items()},
        "grouped sigma-delta": (grouped, {}, drawn(quant.sigma_delta)),
        **{f"periodic {k}": (f"W{bits}", {}, drawn(quant.sigma_delta, extra_bits=k))
           for k in extra_bits},
        **{f"mean of {k}": (f"W{bits}", {"round_fn": drawn(_mean, extra_bits=k)(0)}, None)
           for k in extra_bits},
    }  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows of every (sampler, steps, bits, method); touches no file.

    Arrays of each: errors, the RMSE of each sample [seeds, samples of a seed]. Options as
    `command.parts`.
    """
    subject.check_shares(config)
    most = max(config.num_steps)
    steps_of = functools.partial(subject.SAMPLERS[config.samplers[0]], num_steps=most)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    calibration, denoiser = here.calibration, here.denoiser
    x_T = subject.noise(denoiser, config.num_samples, config.seed)

    @functools.cache
    def programs(sampler: str, num_steps: int):
        steps = subject.SAMPLERS[sampler](denoiser.schedule, num_steps)
        key = subject.noise_key(steps, config.seed)
        shares = subject.shares_of_states(denoiser, x_T, steps, config.num_seeds, key)
        errors = compiling.compiled(lambda q, xs, key: subject.sample_errors(q, xs, steps, key))

        def of_seeds(qs):
            return np.stack([errors(q, *share) for q, share in zip(qs, shares, strict=True)])

        if key is not None or not steps.is_first_order:
            return of_seeds, None  # predictions are of a state alone, a sampler without noise

        @compiling.compiled
        def predicted(q):
            some = shares[0][0][:, : config.num_predicted]
            return prediction.root_mean_square(prediction.predict_errors(q, some, steps)[-1])

        return of_seeds, predicted

    def measure(part: str):
        sampler, num_steps, bits, method = parts[part]
        recipe, chosen, round_of = methods(bits, config.extra_bits, config.group_size)[method]
        errors, predicted = programs(sampler, num_steps)

        @functools.cache
        def quantized(seed: int | None):
            drawn = {} if seed is None else {"round_fn": round_of(seed)}
            return precision.quantize(calibration, recipe, sites=config.sites, **chosen | drawn)

        qs = [quantized(config.seed + i if round_of else None) for i in range(config.num_seeds)]
        values = errors(qs)
        found = values if round_of else values.reshape(1, -1)
        row = {"sampler": sampler, "num_steps": num_steps, "bits": bits, "method": method,
               "rmse": float(subject.rms(values)), "median": float(np.median(values)),
               "of_seeds": [float(subject.rms(e)) for e in found]}  # fmt: skip
        if predicted is not None:
            ours = subject.rms(predicted(qs[0])) / subject.rms(values[0, : config.num_predicted])
            row["predicted_over_measured"] = float(ours)
        return {"errors": found}, row

    parts = {f"{s}, {n} steps, W{b}, {m}": (s, n, b, m) for s in config.samplers
             for n in config.num_steps for b in config.weight_bits
             for m in methods(b, config.extra_bits, config.group_size)}  # fmt: skip
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts(parts, measure, mark, **options)
    return command.by_part(done), [row | intervals.of_shares(arrays["errors"], config.seed)
                                   for arrays, row in done.values()]  # fmt: skip


EXPERIMENT = command.experiment(Config, run, plots=plots)
