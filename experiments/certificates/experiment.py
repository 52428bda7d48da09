"""Certified error of a tiny quantized denoiser, one call and a sampling run, against measurement.

    python -m experiments.certificates

  one call     all inputs of a square, cut into boxes; against the largest error among many inputs,
               rounded to nearest, at random, and as unluckily as a gradient search makes it
  sampler      runs from single x_T; against the run that is measured and the unluckiest found
  sets         runs from all x_T of small squares, against runs from their corners and insides

Weights alone (W8) leave nothing to chance; with activations (W8A8) a certificate covers every
outcome of every rounding, however unlikely. The network is trained first, in seconds.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.certificates import measure as parts
from experiments.certificates import plots
from experiments.harness import old_command as command
from qdiffjax import diffusion, precision
from qdiffjax.analysis import certificates

SLACK = 1e-12  # the runs that are compared are computed in float64
NUM_INSIDE = 32  # inputs that are tried of each set


@dataclasses.dataclass(frozen=True)
class Config:
    """What to certify; widths of activations are those of the weights where there are any."""

    bits: tuple[int, ...] = (12, 10, 8, 6)
    call_bits: int = 8
    times: tuple[int, ...] = (50, 100, 300, 500, 900)
    grids: tuple[int, ...] = (1, 4, 16, 32)
    half_width: float = 2.5
    num_inputs: int = 100_000
    num_keys: int = 4
    num_steps: int = 20
    num_samples: int = 200
    radii: tuple[float, ...] = (0.01, 0.03, 0.1)
    width: int = 32
    train_steps: int = 4000
    seed: int = 0


HELP = {
    "bits": "widths of the sampler", "times": "times of one call", "grids": "boxes a side",
    "radii": "of sets of x_T", "call_bits": "width of one call",
    "half_width": "of the square of inputs", "num_inputs": "inputs in it",
    "num_keys": "keys of stochastic rounding", "num_steps": "sampler steps",
    "num_samples": "runs", "width": "hidden units", "train_steps": "steps of training",
    "seed": "of everything random",
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if min(*config.bits, config.call_bits) < 2 or min(config.grids) < 1:
        raise ValueError("expected at least 2 bits and 1 box a side.")


@jax.jit
def _call_bounds(q, low, high, t):
    def one(box):
        return certificates.bounds(certificates.enclose(q, certificates.box(*box), t).difference)

    return jax.lax.map(one, (low, high), batch_size=64)


@jax.jit
def _call_error(q, x, t):
    return precision.quantized_call(q)(x, t, None)[0] - precision.full_call(q)(x, t, None)[0]


@jax.jit
def _call_unlucky(q, x, t, nudges):
    call, full = parts.nudged_call(q), precision.full_call(q)(x, t, None)[0]
    return parts.unlucky(lambda n: call(x, t, n)[0] - full, nudges)


def certify_call(subject: parts.Subject, config: Config, activation_bits, t: int, x) -> dict:
    """Certificates of one call on grids of boxes, checked on every input of x [n, 2]."""
    q, time_ = subject.quantized(config.call_bits, activation_bits), jnp.asarray(float(t))
    errors = {"nearest": _call_error(q, x, time_)[None]}
    if activation_bits is not None:
        nudges = parts.no_nudges(subject.calibration.sites, (len(x),))
        errors["unlucky"] = _call_unlucky(q, x, time_, nudges)
    row: dict[str, Any] = {
        "kind": "call", "weight_bits": config.call_bits, "activation_bits": activation_bits, "t": t
    }  # fmt: skip
    row["measured"] = float(np.max(np.abs(errors["nearest"])))
    row["worst_found"] = max(float(np.max(np.abs(e))) for e in errors.values())
    row["checks"] = row["violations"] = 0
    certified = []
    for num in config.grids:
        low, high = _call_bounds(q, *parts.grid_boxes(config.half_width, num), time_)
        certified.append(float(np.max(np.maximum(-low, high))))
        for found in errors.values():
            _check(row, found, low, high, parts.box_of(x, config.half_width, num))
    if activation_bits is not None:
        _check_random(row, q, config, time_, x)
    row["certified"] = certified
    row["ratio"] = [c / row["worst_found"] for c in certified]
    row["grids"] = list(config.grids)
    return row


def _check(row, found, low, high, box) -> None:
    """Count how many errors found [k, n, 2] leave the certificates of their boxes."""
    low, high = np.asarray(low)[box, 0], np.asarray(high)[box, 0]
    out = (np.asarray(found) < low - SLACK) | (np.asarray(found) > high + SLACK)
    row["checks"] += out.shape[0] * out.shape[1]
    row["violations"] += int(out.any(-1).sum())


def _check_random(row, q, config: Config, t, x) -> None:
    """The same for stochastic rounding, whose certificate is wider."""
    num = config.grids[-1]
    for key in jax.random.split(jax.random.key(config.seed + 2), config.num_keys):
        q_random = parts.randomized(q, key)
        low, high = _call_bounds(q_random, *parts.grid_boxes(config.half_width, num), t)
        errors = _call_error(q_random, x, t)[None]
        _check(row, errors, low, high, parts.box_of(x, config.half_width, num))


@jax.jit
def _tubes(q, low, high, steps):
    def one(box):
        tube = certificates.sample_tube(q, certificates.box(*box), steps)
        return tube.error_low[:, 0], tube.error_high[:, 0]

    return jax.lax.map(one, (low[:, None], high[:, None]), batch_size=50)


@jax.jit
def _runs(q, x_T, steps):
    full = diffusion.sample(precision.full_call(q), x_T, steps).xs
    return full, diffusion.sample(precision.quantized_call(q), x_T, steps).xs - full


@jax.jit
def _unlucky_runs(q, x_T, steps, x_0, nudges):
    call = parts.nudged_call(q)

    def final(n):
        return diffusion.sample(call, x_T, steps, per_call=n, keep_trajectory=False).x_0 - x_0

    return parts.unlucky(final, nudges)


def certify_sampler(subject: parts.Subject, bits: int, activation_bits, x_T) -> tuple[dict, dict]:
    """Certificates of whole runs from each x_T [n, 2], with what was measured; (row, arrays)."""
    q = subject.quantized(bits, activation_bits)
    low, high = (np.asarray(v) for v in _tubes(q, x_T, x_T, subject.steps))
    xs, errors = (np.asarray(v) for v in _runs(q, x_T, subject.steps))
    errors = errors.swapaxes(0, 1)
    measured = norms(errors)
    worst = measured[:, -1]
    violations = ((errors < low - SLACK) | (errors > high + SLACK)).any(-1).sum()
    if activation_bits is not None:
        nudges = parts.no_nudges(subject.calibration.sites, (len(subject.steps.t), len(x_T)))
        found = np.asarray(_unlucky_runs(q, x_T, subject.steps, xs[-1], nudges))
        violations += ((found < low[:, -1] - SLACK) | (found > high[:, -1] + SLACK)).any(-1).sum()
        worst = np.maximum(worst, norms(found).max(0))
    bound = norms(np.maximum(-low, high))
    arrays = {"certified": bound, "measured": measured, "worst_found": worst}
    row = {
        "kind": "sampler", "weight_bits": bits, "activation_bits": activation_bits,
        "samples": len(x_T), "violations": int(violations),
        "finite": float(np.mean(np.isfinite(bound[:, -1]))),
        "useful": float(np.mean(bound[:, -1] < parts.STD)),
        "measured_median": float(np.median(measured[:, -1])),
        "worst_found_median": float(np.median(worst)),
        "certified_median": float(np.median(bound[:, -1])),
        "ratio_to_measured_median": float(np.median(bound[:, -1] / measured[:, -1])),
        "ratio_to_worst_median": float(np.median(bound[:, -1] / worst)),
    }  # fmt: skip
    return row, arrays


def certify_set(subject: parts.Subject, bits: int, activation_bits, x_T, radius: float) -> dict:
    """Certificates of runs from all x_T within `radius` in each coordinate of x_T [n, 2]."""
    q = subject.quantized(bits, activation_bits)
    low, high = (np.asarray(v) for v in _tubes(q, x_T - radius, x_T + radius, subject.steps))
    part = np.random.default_rng(0).uniform(-1, 1, (NUM_INSIDE, 1, 2))
    part[NUM_INSIDE // 2 :] = np.sign(part[NUM_INSIDE // 2 :])  # corners
    x = np.asarray(x_T)[None] + radius * part
    _, errors = _runs(q, jnp.asarray(x.reshape(-1, 2)), subject.steps)
    errors = np.asarray(errors).reshape(-1, NUM_INSIDE, len(x_T), 2).transpose(1, 2, 0, 3)
    out = (errors < low - SLACK) | (errors > high + SLACK)
    bound, worst = norms(np.maximum(-low, high))[:, -1], norms(errors)[:, :, -1].max(0)
    return {
        "kind": "set", "weight_bits": bits, "activation_bits": activation_bits, "radius": radius,
        "checks": int(out.shape[0] * out.shape[1]), "violations": int(out.any((-1, -2)).sum()),
        "finite": float(np.mean(np.isfinite(bound))),
        "useful": float(np.mean(bound < parts.STD)),
        "worst_found_median": float(np.median(worst)), "certified_median": float(np.median(bound)),
        "ratio_to_worst_median": float(np.median(bound / worst)),
    }  # fmt: skip


def norms(errors) -> np.ndarray:
    """Euclidean norm over the last axis; infinity where anything is infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.nan_to_num(np.sqrt(np.sum(np.square(errors), -1)), nan=np.inf, posinf=np.inf)


def run(config: Config, *, progress: bool = False):
    """Return arrays and rows.

    Arrays: for each width of the sampler "<width>/certified" and "<width>/measured", norms of the
    error [samples, N+1], and "<width>/worst_found" of the last [samples]. Rows: one call ("call")
    at each time, whole runs ("sampler"), runs from sets of x_T ("set"), the training's loss
    ("network").
    """
    from tqdm import tqdm

    params, loss = parts.train(config.seed, width=config.width, num_steps=config.train_steps)
    rows: list[dict] = [{"kind": "network", "loss": loss}]
    arrays: dict[str, np.ndarray] = {}
    with jax.enable_x64(True):
        subject = parts.prepare(params, config.num_steps, config.seed)
        rng = np.random.default_rng(config.seed)
        x = rng.uniform(-config.half_width, config.half_width, (config.num_inputs, 2))
        x_T = jax.random.normal(jax.random.key(config.seed + 1), (config.num_samples, 2),
                                jnp.float64)  # fmt: skip
        calls = [(a, t) for a in (None, config.call_bits) for t in config.times]
        for activation_bits, t in tqdm(calls, disable=not progress, unit="call"):
            rows.append(certify_call(subject, config, activation_bits, t, jnp.asarray(x)))
        widths = [(b, a) for b in config.bits for a in (None, b)]
        for bits, activation_bits in tqdm(widths, disable=not progress, unit="width"):
            row, found = certify_sampler(subject, bits, activation_bits, x_T)
            rows.append(row)
            name = plots.name_of(row)
            arrays |= {f"{name}/{key}": v for key, v in found.items()}
            if bits in (max(config.bits), config.call_bits):
                rows += [certify_set(subject, bits, activation_bits, x_T, r) for r in config.radii]
    return arrays, rows


EXPERIMENT = command.Experiment(
    "certificates", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table, resumes=False,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the tables, write the results."""
    return command.main(EXPERIMENT, argv)
