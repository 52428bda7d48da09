"""Widths by step: the ceiling of what they can gain, what the best of them gains, and the rule.

    python -m experiments.schedules                                the shipped DiT
    python -m experiments.schedules --checkpoint fashion_unet

Activations of all sites but the last at `bits` on average. The ceiling is known before any search,
from full-precision gains alone (`strategies.step_ceiling` of `activation_variances`): the bits a
step that real-valued widths could save at the same error. Whole widths of least forecast
(`widths_by_step`) and the rule of production recipes, a bit more at both ends and a bit less at as
many steps between (`ends_rule`), run on fresh noise beside equal widths, with the same bits in all:
their gain is log2 of the ratio of RMS errors, in bits, with the paired 95 % interval. Scales are
dynamic, and rounding stochastic where `--rounding` says so, as the forecast takes it.

The ceiling for path KL is of a sampler that adds noise (`divergences.path_kl`), its last step,
which adds none, left out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.schedules import plots
from qdiffjax import compiling, estimates, precision, results, strategies
from qdiffjax.analysis import divergences
from qdiffjax.analysis.errors import runs, site_variances

EQUAL, BEST, RULE = "equal", "best of whole bits", "a bit more at both ends"
KL = "path KL"
KL_SAMPLER = "ddpm"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    samplers: tuple[str, ...] = option(("ddim", "ddim-quadratic", "dpmpp-2m", "ddpm"), "Samplers.",
                                       choices=subject.SAMPLERS)  # fmt: skip
    bits: tuple[int, ...] = option((4, 6), "Bits of activations, on average.", least=3, most=7)
    rounding: str = option("stochastic", "Of activations.", choices=("nearest", "stochastic"))
    num_steps: int = option(20, "Steps of a sampler.", least=4)
    num_samples: int = option(64, "Fresh noises that are reported.", least=2)
    num_forecast: int = option(16, "Samples of the forecast.", least=2)
    num_probes: int = option(4, "Probes of the forecast.", least=2)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


def words_of(widths, rounding: str) -> str:
    """Return a recipe in words of activations with these widths by step [N]."""
    usual = int(np.bincount(widths).argmax())
    lines = [f"A{usual} {rounding}"]
    for bits in sorted(set(widths) - {usual}):
        steps = ",".join(str(i) for i in np.flatnonzero(np.asarray(widths) == bits))
        lines.append(f"steps {steps}: A{bits} {rounding}")
    return "; ".join(lines)


def run(config: Config, **options):
    """Return arrays and rows of every (sampler, bits), and of path KL; touches no file.

    Arrays of each: squares [samples, N], what the steps add; errors of fresh noises by schedule.
    Options as `command.parts`.
    """
    steps_of = functools.partial(subject.SAMPLERS[config.samplers[0]], num_steps=config.num_steps)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser = here.denoiser
    key = jax.random.key(config.seed + 5)

    @functools.cache
    def world(sampler: str):
        steps = subject.SAMPLERS[sampler](denoiser.schedule, config.num_steps)
        return steps, subject.observed(here, steps, config.seed).calibration

    def quantized(sampler: str, widths):
        return precision.quantize(
            world(sampler)[1], words_of(widths, config.rounding), sites=config.sites,
            activations="dynamic", key=jax.random.key(config.seed),
        )  # fmt: skip

    def ceiling(squares) -> dict:
        found = strategies.step_ceiling(jnp.asarray(squares), key=key)
        return {"ceiling": [float(found.value), float(found.low), float(found.high)],
                "by_step": np.mean(squares, 0).tolist()}  # fmt: skip

    def of_error(sampler: str, bits: int):
        steps, _ = world(sampler)
        x_T = subject.noise(denoiser, config.num_samples + config.num_forecast, config.seed)
        some, fresh = x_T[: config.num_forecast], x_T[config.num_forecast :]
        noise = subject.noise_key(steps, config.seed)
        equal = np.full(config.num_steps, bits)
        probes = runs.signs(jax.random.key(config.seed + 1), config.num_probes, some)
        cells = compiling.compiled(lambda q: site_variances.activation_variances(
            q, some, steps, probes, key=noise
        ).contributions)(quantized(sampler, equal))  # fmt: skip
        squares = np.asarray(sum(cells.values()))
        widths = {EQUAL: equal, BEST: strategies.widths_by_step(squares.mean(0), bits),
                  RULE: strategies.ends_rule(config.num_steps, bits)}  # fmt: skip
        xs = subject.full_states(denoiser, fresh, steps, noise)
        errors_of = compiling.compiled(lambda q: subject.sample_errors(q, xs, steps, noise))
        qs = precision.alike([quantized(sampler, each) for each in widths.values()], steps)
        errors = {name: np.asarray(errors_of(q)) for name, q in zip(widths, qs, strict=True)}
        row = {"kind": "error", "sampler": sampler, "bits": bits, **ceiling(squares),
               "forecast": float(np.sqrt(squares.sum(1).mean() / fresh[0].size)),
               "rmse": {name: float(subject.rms(each)) for name, each in errors.items()},
               "widths": {name: each.tolist() for name, each in widths.items()}}  # fmt: skip
        for name in (BEST, RULE):
            gain = estimates.bootstrap(_gain, errors[EQUAL], errors[name], key=key, num=1000)
            row[f"gain, {name}"] = [float(gain.value), float(gain.low), float(gain.high)]
        return {"squares": squares, **errors}, row

    def of_kl(bits: int):
        steps, _ = world(KL_SAMPLER)
        q = quantized(KL_SAMPLER, np.full(config.num_steps, bits))
        x_T = subject.noise(denoiser, config.num_forecast, config.seed)
        terms = compiling.compiled(lambda q: divergences.path_kl(
            precision.full_call(q), precision.quantized_call(q), x_T, steps, key=key,
            per_call=q.calls(steps), state=q.start(x_T),
        ))(q)  # fmt: skip
        squares = np.asarray(terms)[:-1].T
        return {"squares": squares}, {"kind": "KL", "sampler": KL_SAMPLER, "bits": bits,
                                      **ceiling(squares), "kl": float(squares.sum(1).mean()),
                                      "last_tenth": float(_last_tenth(squares))}  # fmt: skip

    parts = {f"{s}, A{b}": functools.partial(of_error, s, b)
             for s in config.samplers for b in config.bits}  # fmt: skip
    parts |= {f"{KL}, A{b}": functools.partial(of_kl, b) for b in config.bits}
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts(parts, lambda part: parts[part](), mark, **options)
    return command.by_part(done), [row for _, row in done.values()]


def _gain(equal, other):
    """Return log2 of the ratio of RMS errors [samples]: bits gained."""
    return jnp.log2(subject.rms(equal) / subject.rms(other))


def _last_tenth(squares) -> float:
    """Return the share of the last tenth of the steps [samples, N]."""
    steps = np.mean(squares, 0)
    return steps[-max(1, len(steps) // 10) :].sum() / steps.sum()


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"samplers": ("ddim",), "bits": (4,), "num_steps": 5, "num_samples": 8,
           "num_forecast": 4, "num_probes": 2},
)  # fmt: skip
