"""Time grids: descending times [N+1] that a sampler visits, noisiest first, as NumPy float64.

Two families. Real grids run from t_max to t_min of a `Process`; `to_zero` appends the step to clean
data ("final sigma zero"; without it the grid ends at sigma_min). Integer grids are those that
diffusers names, in our times 1 ... T, one more than its timesteps, and end at 0.
"""

import numpy as np

from qdiffjax._checks import POSITIVE, check_count, check_number, checked, require
from qdiffjax.diffusion.processes import Process, half_log_snr
from qdiffjax.diffusion.schedules import DiscreteSchedule, uniform_times

SIGMA_MAX, SIGMA_MIN = 80.0, 0.002  # of sigma_edm; Karras et al. 2022, table 1


@checked(t_max=check_number, t_min=check_number, num_steps=check_count, power=POSITIVE)
def power_times(t_max: float, t_min: float, num_steps: int, power: float = 1.0) -> np.ndarray:
    """Return (t_max^(1/power) + i / N (t_min^(1/power) - t_max^(1/power)))^power, i = 0 ... N.

    Power 1 is the uniform grid; 2 the quadratic one; 7 that of Karras et al. where t is sigma.

    Raises:
      ValueError: unless t_max > t_min >= 0 and num_steps >= 1.
    """
    require(t_max > t_min >= 0, "t_max, t_min", got=(t_max, t_min),
            expected="t_max > t_min >= 0", remedy="change the ends")  # fmt: skip
    ends = t_max ** (1 / power), t_min ** (1 / power)
    times = np.linspace(float(ends[0]), float(ends[1]), num_steps + 1) ** power
    times[0], times[-1] = t_max, t_min
    return times


def default_times(schedule, num_steps: int) -> np.ndarray:
    """Return the grid that samplers take where only a number of steps is given [N+1].

    Of a `DiscreteSchedule` `uniform_times`, as DDIM; of a `Process` `karras_times` from
    sigma_edm = 80 to 0.002 (or what the process itself has as its ends), and clean data last, as
    Karras et al. 2022, table 1.

    Raises:
      ValueError: a number of steps that the schedule does not have; no schedule.
    """
    if isinstance(schedule, DiscreteSchedule):
        return uniform_times(schedule.num_train_steps, num_steps)
    require(isinstance(schedule, Process), "schedule", got=repr(schedule),
            expected="a DiscreteSchedule or a Process",
            remedy="such as linear() or Flow()")  # fmt: skip
    check_count("num_steps", num_steps)
    largest = min(SIGMA_MAX, getattr(schedule, "sigma_max", SIGMA_MAX))
    smallest = max(SIGMA_MIN, getattr(schedule, "sigma_min", SIGMA_MIN))
    ends = schedule.time(-2 * np.log(np.array([largest, smallest])))
    return karras_times(schedule, float(ends[0]), float(ends[1]), num_steps)


def quadratic_times(t_max: float, t_min: float, num_steps: int) -> np.ndarray:
    """Return times whose roots are equispaced; Song, Meng & Ermon 2021, appendix D.2."""
    return power_times(t_max, t_min, num_steps, 2.0)


@checked(t_max=check_number, t_min=check_number, num_steps=check_count)
def log_snr_times(process: Process, t_max: float, t_min: float, num_steps: int) -> np.ndarray:
    """Return times of equispaced log-SNR, the grid of DPM-Solver; Lu et al. 2022a, section 3.3."""
    ends = half_log_snr(process.exact(np.array([t_max, t_min])))
    require(np.all(np.isfinite(ends)), got=f"log-SNR {2 * ends}", expected="0 < sigma, alpha",
            remedy="change the ends, or use to_zero")  # fmt: skip
    times = process.time(2 * np.linspace(ends[0], ends[1], num_steps + 1))
    times[0], times[-1] = t_max, t_min
    return times


@checked(t_max=check_number, t_min=check_number, num_steps=check_count, rho=POSITIVE)
def karras_times(
    process: Process, t_max: float, t_min: float, num_steps: int, rho: float = 7.0
) -> np.ndarray:
    """Return the times whose sigma_edm = sigma / alpha are those of Karras et al. 2022, eq. 5.

        sigma_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    for i < N, and sigma_N = 0: num_steps steps, the last to clean data.
    """
    ends = np.exp(-half_log_snr(process.exact(np.array([t_max, t_min]))))
    sigma = power_times(ends[0], ends[1], max(num_steps - 1, 1), rho)[:num_steps]
    times = process.time(-2 * np.log(sigma))
    times[0] = t_max
    return to_zero(times)


def to_zero(times) -> np.ndarray:
    """Return the grid with a last step to time 0."""
    return np.append(times, 0.0)


def ending_at(times, last: float) -> np.ndarray:
    """Return the grid with its last time replaced: time 1 is diffusers' sigma_min.

    Its DEIS, and others with `final_sigmas_type="sigma_min"`, stop at their timestep 0.
    """
    return np.append(np.asarray(times, np.float64)[:-1], last)


def trailing_times(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Return round(T, T - T/N, ...) and 0; Lin et al. 2024, table 2: starts at T, pure noise."""
    _check_count(num_train_steps, num_steps)
    down = np.arange(num_train_steps, 0, -num_train_steps / num_steps)
    return to_zero(np.round(down)[:num_steps])


def leading_times(num_train_steps: int, num_steps: int, offset: int = 0) -> np.ndarray:
    """Return 1 + offset + (N-1, ..., 1, 0) floor(T/N) and 0: never reaches T; DDIM's code.

    Stable Diffusion has offset 1, with which T steps would begin beyond T.
    """
    _check_count(num_train_steps, num_steps)
    ratio = num_train_steps // num_steps
    check_count("offset", offset, least=0)
    return _to_zero(1.0 + offset + ratio * np.arange(num_steps - 1, -1, -1), num_train_steps)


def linspace_times(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Return N times from T to 1, both included, rounded, and 0; Nichol & Dhariwal's code."""
    _check_count(num_train_steps, num_steps)
    return to_zero(1 + np.round(np.linspace(0, num_train_steps - 1, num_steps))[::-1])


def multistep_linspace_times(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Return the first N of N + 1 `linspace_times`, and 0: diffusers' DPM-Solver, UniPC, DEIS.

    N < T, of which there are N + 1 (theirs repeats times at N = T).
    """
    _check_count(num_train_steps, num_steps)
    times = 1 + np.round(np.linspace(0, num_train_steps - 1, num_steps + 1))[:0:-1]
    return _to_zero(times, num_train_steps)


def multistep_leading_times(num_train_steps: int, num_steps: int, offset: int = 0) -> np.ndarray:
    """Return 1 + offset + (N, ..., 1) floor(T/(N+1)) and 0: diffusers' DPM-Solver, UniPC, DEIS.

    N < T, for floor(T/(N+1)) not to be 0.
    """
    _check_count(num_train_steps, num_steps)
    check_count("offset", offset, least=0)
    times = 1.0 + offset + num_train_steps // (num_steps + 1) * np.arange(num_steps, 0, -1)
    return _to_zero(times, num_train_steps)


def _check_count(num_train_steps: int, num_steps: int) -> None:
    check_count("num_train_steps", num_train_steps)
    check_count("num_steps", num_steps, most=num_train_steps)


def _to_zero(times: np.ndarray, num_train_steps: int) -> np.ndarray:
    """Return the grid with a last step to 0; raise unless its times differ and are at most T."""
    require(np.all(np.diff(times) < 0) and times[0] <= num_train_steps, "num_steps, offset",
            got=f"num_steps = {times.size}, whose times begin {times[:3]}",
            expected=f"distinct times of at most {num_train_steps}",
            remedy="take fewer steps, or trailing_times, which has up to all")  # fmt: skip
    return to_zero(times)
