"""How samplers with memory are written down: as their algorithm, run on basis vectors.

Every quantity in a linear method is a combination of the state's slots, of the output of the
current network call and of its noise. Here such a quantity *is* its vector of coefficients, so a
method is written as its paper writes it, with vectors for x, eps and z; what it computes for the
new slots are the rows of the matrices of `SlotCoeffs`.

    (x, old), out, z = basis(2)
    x_0, eps = denoise(x, out, level)
    Call(t, s, read=x, slots=(level_s.alpha * x_0 + level_s.sigma * eps, x_0))
"""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_numbers, require
from qdiffjax.diffusion.grids import default_times
from qdiffjax.diffusion.loop import SlotCoeffs, StepCoeffs, Steps
from qdiffjax.diffusion.processes import half_log_snr
from qdiffjax.diffusion.schedules import NoiseLevel

Vector = np.ndarray


class Call(NamedTuple):
    """One network call of a method with K slots; its vectors have K + 2 entries (see `basis`).

    t: the time that the network is given; s: the time of slot 0 after the call;
    read: what the network sees, of the slots alone; slots: the K new ones.
    """

    t: float
    s: float
    read: Vector
    slots: tuple[Vector, ...]


class Interval(NamedTuple):
    """One step of a time grid.

    position: 0 is the noisiest; last: is it the last one; t, s: its times; at, to: their levels;
    width: h = lambda_s - lambda_t > 0, half the increase of log-SNR, inf at alpha_t or sigma_s = 0.
    """

    position: int
    last: bool
    t: float
    s: float
    at: NoiseLevel
    to: NoiseLevel
    width: float


def basis(num_slots: int) -> tuple[tuple[Vector, ...], Vector, Vector]:
    """Return the unit vectors of the slots, of the network's output and of the noise."""
    unit = np.eye(num_slots + 2)
    return tuple(unit[:-2]), unit[-2], unit[-1]


def intervals(schedule, times) -> list[Interval]:
    """Return the steps of a grid of descending times [N+1].

    Args:
      schedule: anything with exact(times) -> NoiseLevel in NumPy float64.
      times: [N+1], noisiest first, or N for `grids.default_times`.

    Raises:
      ValueError: if times do not descend strictly, or a step starts without noise.
    """
    require(hasattr(schedule, "exact"), "schedule", got=repr(schedule),
            expected="a DiscreteSchedule or a Process", remedy="such as linear() or Flow()",
            error=TypeError)  # fmt: skip
    check_numbers("times", times)
    if np.ndim(times) == 0:
        check_count("times", times)
        times = default_times(schedule, operator.index(times))
    times = np.asarray(times, np.float64)
    require(
        times.ndim == 1 and times.size >= 2 and np.all(np.diff(times) < 0),
        "times",
        got=times,
        expected="two or more, strictly descending",
        remedy="see diffusion.grids",
    )
    level = schedule.exact(times)
    require(
        np.all(level.sigma[:-1] > 0),
        "times",
        got=f"sigma = 0 before the last of {times}",
        expected="positive",
        remedy="end the grid at the first time without noise",
    )
    levels, width = [NoiseLevel(*pair) for pair in zip(*level, strict=True)], -log_ratios(level)
    last = times.size - 2
    return [
        Interval(i, i == last, times[i], times[i + 1], levels[i], levels[i + 1], width[i])
        for i in range(last + 1)
    ]


def log_ratios(level: NoiseLevel) -> np.ndarray:
    """Return log(alpha_t sigma_s / (alpha_s sigma_t)) = -h of consecutive levels [N]."""
    return -np.diff(half_log_snr(level))


def transfer(x: Vector, eps: Vector, at: NoiseLevel, to: NoiseLevel) -> Vector:
    """Return alpha_s x_0 + sigma_s eps, the DDIM step of x with a given eps.

    (alpha_s / alpha_t) x + (sigma_s - alpha_s sigma_t / alpha_t) eps
    """
    scale = to.alpha / at.alpha
    return scale * x + (to.sigma - scale * at.sigma) * eps


def assemble(calls: Sequence[Call]) -> Steps:
    """Return the calls as a table, in JAX's default float dtype; `StepCoeffs` if one slot is all.

    Raises:
      ValueError: if a call reads its own output or noise, or the table is not finite.
    """
    reads = np.stack([call.read for call in calls])
    slots = np.stack([np.stack(call.slots) for call in calls])
    _check_table(reads, slots)
    t, s = (np.array([getattr(call, name) for call in calls]) for name in ("t", "s"))
    coeffs: StepCoeffs | SlotCoeffs
    memoryless = slots.shape[1] == 1 and np.all(reads[:, 0] == 1)
    if memoryless:
        coeffs = StepCoeffs(slots[:, 0, 0], slots[:, 0, 1], slots[:, 0, 2])
    else:
        coeffs = SlotCoeffs(reads[:, :-2], slots[..., :-2], slots[..., -2], slots[..., -1])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), Steps(t, s, coeffs))  # type: ignore[arg-type]


def _check_table(reads: np.ndarray, slots: np.ndarray) -> None:
    require(
        not np.any(reads[:, -2:] != 0),
        got="a call that reads its own output or noise",
        expected="slots only",
        remedy="keep the noise of the call before in a slot",
    )
    bad = ~np.all(np.isfinite(slots), axis=(1, 2)) | ~np.all(np.isfinite(reads), axis=1)
    require(
        not np.any(bad),
        got=f"infinite coefficients at call {int(np.argmax(bad))}",
        expected="finite ones",
        remedy="a grid from alpha = 0 needs prediction=v_prediction, "
        "x0_prediction or flow_prediction",
    )


def nfe(steps: Steps) -> int:
    """Return the number of network calls per sample."""
    return math.prod(jnp.shape(steps.t))


def pad(steps: Steps, num_calls: int, num_slots: int) -> Steps:
    """Return the same sampler with idle calls and slots, so that tables stack under vmap.

    An idle call leaves the state as it is; its output is not used, though it is computed. The
    table must be concrete: padding is done in NumPy, so that no shape is compiled for it.

    Raises:
      ValueError: if there is no room, or coefficients are matrices.
    """
    dtype, (t, s, coeffs) = steps.t.dtype, jax.tree.map(np.asarray, steps)
    if isinstance(coeffs, StepCoeffs):
        x, eps, noise = coeffs
        require(
            x.ndim <= 1,
            got=f"matrix coefficients {x.shape}",
            expected="scalars",
            remedy="tables of (x, v) stack if they have equally many calls",
        )
        coeffs = SlotCoeffs(np.ones_like(x)[:, None], x[:, None, None], eps[:, None],
                            noise[:, None])  # fmt: skip
    extra, idle = num_slots - coeffs.input.shape[1], num_calls - len(t)
    require(
        extra >= 0 and idle >= 0,
        got=f"{len(t)} calls, {coeffs.input.shape[1]} slots",
        expected=f"at most {num_calls}, {num_slots}",
        remedy="raise both",
    )
    first, same = np.eye(num_slots)[0], np.eye(num_slots)
    still = SlotCoeffs(first, same, 0 * first, 0 * first)

    def fill(leaf, value):
        wide = np.pad(leaf, [(0, 0)] + [(0, extra)] * (leaf.ndim - 1))
        rows = np.broadcast_to(value, (idle, *wide.shape[1:]))
        return jnp.asarray(np.concatenate([wide, rows]), dtype)

    return jax.tree.map(fill, Steps(t, s, coeffs), Steps(t[-1], s[-1], still))
