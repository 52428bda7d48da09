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

import jax
import jax.numpy as jnp
import numpy as np

from experiments.certificates import measure, plots
from experiments.harness import command
from experiments.harness.command import option
from qdiffjax import diffusion, precision
from qdiffjax.analysis import certificates

SLACK = 1e-12  # the runs that are compared are computed in float64
NUM_INSIDE = 32  # inputs that are tried of each set


@dataclasses.dataclass(frozen=True)
class Config:
    """What to certify; widths of activations are those of the weights where there are any."""

    bits: tuple[int, ...] = option((12, 10, 8, 6), "Widths of the sampler.", least=2, most=16)
    call_bits: int = option(8, "Width of one call.", least=2, most=16)
    times: tuple[int, ...] = option(
        (50, 100, 300, 500, 900), "Times of one call, of 1000.", least=1, most=1000
    )
    grids: tuple[int, ...] = option((1, 4, 16, 32), "Boxes a side of the square.", least=1)
    half_width: float = option(2.5, "Half the side of the square of inputs.", above=0)
    num_inputs: int = option(100_000, "Number of inputs in it.", least=1)
    num_keys: int = option(4, "Number of keys of stochastic rounding.", least=1)
    num_steps: int = option(20, "Steps of DDIM.", least=1, most=1000)
    num_samples: int = option(200, "Number of runs.", least=1)
    radii: tuple[float, ...] = option((0.01, 0.03, 0.1), "Radii of the sets of x_T.", above=0)
    width: int = option(32, "Hidden units of the network.", least=1)
    train_steps: int = option(4000, "Steps of its training.", least=1)
    seed: int = command.seed()


def outside(errors, low, high) -> np.ndarray:
    """Return which errors [..., 2] leave their certificates."""
    errors = np.asarray(errors)
    return ((errors < low - SLACK) | (errors > high + SLACK)).any(-1)


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
    call, full = measure.nudged_call(q), precision.full_call(q)(x, t, None)[0]
    return measure.unlucky(lambda n: call(x, t, n)[0] - full, nudges)


def certify_call(subject: measure.Subject, config: Config, activation_bits, t: int, x) -> dict:
    """Certify one call on grids of boxes, checked on every input of x [n, 2]."""
    q, time = subject.quantized(config.call_bits, activation_bits), jnp.asarray(float(t))
    nearest = _call_error(q, x, time)
    errors = np.asarray(nearest)[None]
    if activation_bits is not None:
        nudges = measure.no_nudges(subject.calibration.sites, (len(x),))
        errors = np.concatenate([errors, _call_unlucky(q, x, time, nudges)])

    def check(q, num: int, errors):
        """Return the largest certificate, and which errors [k, n, 2] leave those of their boxes."""
        bounds = _call_bounds(q, *measure.grid_boxes(config.half_width, num), time)
        low, high = (np.asarray(v) for v in bounds)
        box = measure.box_of(x, config.half_width, num)
        return np.max(np.maximum(-low, high)), outside(errors, low[box, 0], high[box, 0])

    certified, out = zip(*(check(q, num, errors) for num in config.grids), strict=True)
    if activation_bits is not None:  # stochastic rounding, whose certificate is wider
        keys = jax.random.split(jax.random.key(config.seed + 2), config.num_keys)
        for q_random in (measure.randomized(q, key) for key in keys):
            random = _call_error(q_random, x, time)[None]
            out += (check(q_random, config.grids[-1], random)[1],)
    worst = float(np.max(np.abs(errors)))
    return {
        "kind": "call", "weight_bits": config.call_bits, "activation_bits": activation_bits,
        "t": t, "measured": float(np.max(np.abs(nearest))), "worst_found": worst,
        "checks": sum(o.size for o in out), "violations": int(sum(o.sum() for o in out)),
        "certified": [float(c) for c in certified],
        "ratio": [float(c) / worst for c in certified], "grids": list(config.grids),
    }  # fmt: skip


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
    call = measure.nudged_call(q)

    def final(n):
        return diffusion.sample(call, x_T, steps, per_call=n, keep_trajectory=False).x_0 - x_0

    return measure.unlucky(final, nudges)


def certify_sampler(subject: measure.Subject, bits: int, activation_bits, x_T) -> tuple[dict, dict]:
    """Certify whole runs from each x_T [n, 2], beside what was measured; return (row, arrays)."""
    q = subject.quantized(bits, activation_bits)
    low, high = (np.asarray(v) for v in _tubes(q, x_T, x_T, subject.steps))
    xs, errors = (np.asarray(v) for v in _runs(q, x_T, subject.steps))
    errors = errors.swapaxes(0, 1)
    measured, bound = norms(errors), norms(np.maximum(-low, high))
    worst, violations = measured[:, -1], outside(errors, low, high).sum()
    if activation_bits is not None:
        nudges = measure.no_nudges(subject.calibration.sites, (len(subject.steps.t), len(x_T)))
        unlucky = np.asarray(_unlucky_runs(q, x_T, subject.steps, xs[-1], nudges))
        violations += outside(unlucky, low[:, -1], high[:, -1]).sum()
        worst = np.maximum(worst, norms(unlucky).max(0))
    arrays = {"certified": bound, "measured": measured, "worst_found": worst}
    row = {
        "kind": "sampler", "weight_bits": bits, "activation_bits": activation_bits,
        "samples": len(x_T), "violations": int(violations),
        "finite": float(np.mean(np.isfinite(bound[:, -1]))),
        "useful": float(np.mean(bound[:, -1] < measure.STD)),
        "measured_median": float(np.median(measured[:, -1])),
        "worst_found_median": float(np.median(worst)),
        "certified_median": float(np.median(bound[:, -1])),
        "ratio_to_measured_median": float(np.median(bound[:, -1] / measured[:, -1])),
        "ratio_to_worst_median": float(np.median(bound[:, -1] / worst)),
    }  # fmt: skip
    return row, arrays


def certify_set(subject: measure.Subject, bits: int, activation_bits, x_T, radius: float) -> dict:
    """Certify runs from all x_T within `radius` in each coordinate of x_T [n, 2]."""
    q = subject.quantized(bits, activation_bits)
    low, high = (np.asarray(v) for v in _tubes(q, x_T - radius, x_T + radius, subject.steps))
    part = np.random.default_rng(0).uniform(-1, 1, (NUM_INSIDE, 1, 2))
    part[NUM_INSIDE // 2 :] = np.sign(part[NUM_INSIDE // 2 :])  # corners
    x = np.asarray(x_T)[None] + radius * part
    _, errors = _runs(q, jnp.asarray(x.reshape(-1, 2)), subject.steps)
    errors = np.asarray(errors).reshape(-1, NUM_INSIDE, len(x_T), 2).transpose(1, 2, 0, 3)
    out = outside(errors, low, high).any(-1)
    bound, worst = norms(np.maximum(-low, high))[:, -1], norms(errors)[:, :, -1].max(0)
    return {
        "kind": "set", "weight_bits": bits, "activation_bits": activation_bits, "radius": radius,
        "checks": out.size, "violations": int(out.sum()),
        "finite": float(np.mean(np.isfinite(bound))),
        "useful": float(np.mean(bound < measure.STD)),
        "worst_found_median": float(np.median(worst)), "certified_median": float(np.median(bound)),
        "ratio_to_worst_median": float(np.median(bound / worst)),
    }  # fmt: skip


def norms(errors) -> np.ndarray:
    """Return the Euclidean norm over the last axis; infinity where anything is infinite."""
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

    params, loss = measure.train(config.seed, width=config.width, num_steps=config.train_steps)
    rows: list[dict] = [{"kind": "network", "loss": loss}]
    arrays: dict[str, np.ndarray] = {}
    with jax.enable_x64(True):
        subject = measure.prepare(params, config.num_steps, config.seed)
        rng = np.random.default_rng(config.seed)
        x = rng.uniform(-config.half_width, config.half_width, (config.num_inputs, 2))
        x_T = jax.random.normal(jax.random.key(config.seed + 1), (config.num_samples, 2),
                                jnp.float64)  # fmt: skip
        calls = [(a, t) for a in (None, config.call_bits) for t in config.times]
        for activation_bits, t in tqdm(calls, disable=not progress, unit="call"):
            rows.append(certify_call(subject, config, activation_bits, t, jnp.asarray(x)))
        widths = [(b, a) for b in config.bits for a in (None, b)]
        for bits, activation_bits in tqdm(widths, disable=not progress, unit="width"):
            row, by_name = certify_sampler(subject, bits, activation_bits, x_T)
            rows.append(row)
            arrays |= {f"{plots.name_of(row)}/{key}": v for key, v in by_name.items()}
            if bits in (max(config.bits), config.call_bits):
                rows += [certify_set(subject, bits, activation_bits, x_T, r) for r in config.radii]
    return arrays, rows


EXPERIMENT = command.experiment(Config, run, plots=plots)
