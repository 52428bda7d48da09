"""Noise schedules: how much signal and how much noise is in x_t."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import (
    NOT_NEGATIVE,
    OPEN_SHARE,
    POSITIVE,
    check_count,
    check_numbers,
    check_type,
    checked,
    require,
)
from qdiffjax._typing import float_dtype


class NoiseLevel(NamedTuple):
    """The law of x_t given x_0: x_t = alpha * x_0 + sigma * eps; both leaves [*times]."""

    alpha: Any
    sigma: Any


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A variance-preserving process on the times 0 ... T, as a table of alpha_bar.

        x_t = sqrt(alpha_bar[t]) * x_0 + sqrt(1 - alpha_bar[t]) * eps

    Ho et al. 2020, eq. 4; survey, eq. 2. Equal and hashed by content, so it can be a static
    argument of a compiled function.

    Attributes:
      alpha_bar: float64 [T+1], 1 at time 0, strictly decreasing and positive (zero at T is
        allowed: zero terminal SNR). Any table will do, a learned one too.

    Raises:
      ValueError: if `alpha_bar` is not such a table.
    """

    alpha_bar: np.ndarray

    def __post_init__(self):
        check_numbers("alpha_bar", self.alpha_bar)
        table = np.array(self.alpha_bar, dtype=np.float64)
        _check_alpha_bar(table)
        table.setflags(write=False)
        object.__setattr__(self, "alpha_bar", table)

    def __eq__(self, other):
        if not isinstance(other, DiscreteSchedule):
            return NotImplemented
        return np.array_equal(self.alpha_bar, other.alpha_bar)

    def __hash__(self):
        return hash(self.alpha_bar.tobytes())

    @property
    def num_train_steps(self) -> int:
        """T, the time of the noise end."""
        return self.alpha_bar.shape[0] - 1

    def __call__(self, t) -> NoiseLevel:
        """Return the noise level at integer-valued times t [*times] (any int or float dtype).

        The result has the dtype of t if that is float32 or float64, and JAX's default float dtype
        if t is an integer.

        Raises:
          ValueError: if a concrete t is outside 0 ... T.
        """
        check_numbers("times", t, least_size=0)
        dtype = float_dtype(t)
        if not isinstance(t, jax.core.Tracer):
            self._check_times(np.asarray(t))
        index = jnp.asarray(t).astype(jnp.int32)
        exact = self.exact(np.arange(self.num_train_steps + 1))
        return NoiseLevel(*(jnp.asarray(leaf, dtype)[index] for leaf in exact))

    def exact(self, times) -> NoiseLevel:
        """Return the noise level at integer times [*times] in NumPy float64, for tables."""
        check_numbers("times", times, least_size=0)
        self._check_times(np.asarray(times))
        index = np.asarray(times).astype(np.int64)
        alpha_bar = self.alpha_bar[index]
        return NoiseLevel(np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar))

    def _check_times(self, times: np.ndarray) -> None:
        require(
            not times.size or (times.min() >= 0 and times.max() <= self.num_train_steps),
            "times",
            got=times,
            expected=f"0 ... {self.num_train_steps}",
            remedy="use times of this schedule (see uniform_times)",
        )
        require(
            not np.any(times != np.floor(times)),
            "times",
            got=times,
            expected="integers",
            remedy="round them, or read the schedule at real times with Interpolated(schedule)",
        )


def _check_alpha_bar(table: np.ndarray) -> None:
    require(
        table.ndim == 1 and table.size >= 2,
        "alpha_bar",
        got=f"shape {table.shape}",
        expected="[T+1] with T >= 1",
        remedy="pass 1 followed by the cumulative products of 1 - beta",
    )
    require(
        table[0] == 1.0 and np.all(np.diff(table) < 0) and table[-1] >= 0,
        "alpha_bar",
        got=f"numbers from {table[0]} to {table[-1]}",
        expected="1 at time 0, strictly decreasing and not negative",
        remedy="prepend 1 to the cumulative products of 1 - beta and keep every beta in (0, 1)",
    )


def _from_betas(betas: np.ndarray) -> DiscreteSchedule:
    return DiscreteSchedule(np.concatenate([np.ones(1), np.cumprod(1.0 - betas)]))


@checked(num_train_steps=check_count, beta_min=OPEN_SHARE, beta_max=OPEN_SHARE)
def linear(
    num_train_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02
) -> DiscreteSchedule:
    """Return beta_t equispaced from beta_min to beta_max; Ho et al. 2020, section 4.

    The default betas suit T = 1000; with another T they leave another amount of signal at T.

    Example:
      >>> import qdiffjax as qd
      >>> schedule = qd.linear(1000)
      >>> [round(float(schedule(t).alpha), 3) for t in (0, 500, 1000)]
      [1.0, 0.28, 0.006]
    """
    return _from_betas(np.linspace(beta_min, beta_max, num_train_steps))


@checked(num_train_steps=check_count, offset=NOT_NEGATIVE, max_beta=OPEN_SHARE)
def cosine(
    num_train_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999
) -> DiscreteSchedule:
    """Return the cosine schedule; Nichol & Dhariwal 2021, eq. 17.

        alpha_bar[t] = f(t) / f(0),  f(t) = cos^2((t / T + offset) / (1 + offset) * pi / 2)

    with beta_t = 1 - alpha_bar[t] / alpha_bar[t-1] at most `max_beta`.

    Example:
      >>> import qdiffjax as qd
      >>> schedule = qd.cosine(1000)
      >>> [round(float(schedule(t).alpha), 3) for t in (0, 500, 1000)]
      [1.0, 0.703, 0.0]
    """
    times = np.arange(num_train_steps + 1) / num_train_steps
    f = np.cos((times + offset) / (1.0 + offset) * np.pi / 2) ** 2
    return _from_betas(np.minimum(1.0 - f[1:] / f[:-1], max_beta))


@checked(num_train_steps=check_count, offset=NOT_NEGATIVE, max_beta=OPEN_SHARE)
def sqrt(
    num_train_steps: int = 1000, offset: float = 1e-4, max_beta: float = 0.999
) -> DiscreteSchedule:
    """Return the square-root schedule; Li et al. 2022, appendix A.

        alpha_bar[t] = 1 - sqrt(t / T + offset),  1 at time 0,  with every beta at most max_beta

    The schedule of Diffusion-LM: step one alone adds noise of std (1/T + offset)^(1/4). The
    authors' code divides by 1 - sqrt(offset), the paper does not.
    """
    table = 1.0 - np.sqrt(np.arange(1, num_train_steps + 1) / num_train_steps + offset)
    table = np.concatenate([np.ones(1), np.maximum(table, 0.0)])
    return _from_betas(np.minimum(1.0 - table[1:] / table[:-1], max_beta))


@checked(num_train_steps=check_count, temperature=POSITIVE, max_beta=OPEN_SHARE)
def sigmoid(
    num_train_steps: int = 1000, start: float = -3.0, end: float = 3.0, temperature: float = 1.0,
    max_beta: float = 0.999,
) -> DiscreteSchedule:  # fmt: skip
    """Return the sigmoid schedule; Jabri, Fleet & Chen 2023, as in Chen 2023, section 2.

        alpha_bar[t] = (v(1) - v(t / T)) / (v(1) - v(0)),
        v(u) = 1 / (1 + exp(-(start + u (end - start)) / temperature))

    with every beta at most `max_beta`; theirs is alpha_bar of at least 1e-9. Where beta itself is a
    sigmoid: `sigmoid_betas`.

    Raises:
      ValueError: unless start < end and temperature > 0.
    """
    require(start < end, "start, end", got=(start, end), expected="start < end",
            remedy="such as -3 and 3")  # fmt: skip
    times = np.arange(num_train_steps + 1) / num_train_steps
    v = 1 / (1 + np.exp(-(start + times * (end - start)) / temperature))
    table = (v[-1] - v) / (v[-1] - v[0])
    return _from_betas(np.minimum(1.0 - table[1:] / table[:-1], max_beta))


@checked(num_train_steps=check_count, beta_min=OPEN_SHARE, beta_max=OPEN_SHARE)
def sigmoid_betas(
    num_train_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02
) -> DiscreteSchedule:
    """Return beta_t = beta_min + (beta_max - beta_min) / (1 + exp(-u_t)), u_t equispaced, -6 to 6.

    GeoDiff's schedule (Xu et al. 2022, code); diffusers' beta_schedule="sigmoid".
    """
    u = np.linspace(-6, 6, num_train_steps)
    return _from_betas(beta_min + (beta_max - beta_min) / (1 + np.exp(-u)))


@checked(num_train_steps=check_count, beta_min=OPEN_SHARE, beta_max=OPEN_SHARE)
def scaled_linear(
    num_train_steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012
) -> DiscreteSchedule:
    """Return sqrt(beta_t) equispaced; Stable Diffusion's schedule (Rombach et al. 2022, code)."""
    return _from_betas(np.linspace(beta_min**0.5, beta_max**0.5, num_train_steps) ** 2)


def zero_terminal_snr(schedule: DiscreteSchedule) -> DiscreteSchedule:
    """Return the schedule shifted and stretched so that x_T is pure noise; Lin et al. 2024, alg. 1.

        alpha[t] <- alpha[1] (alpha[t] - alpha[T]) / (alpha[1] - alpha[T]),   t >= 1

    At T alpha is zero, so eps there says nothing about x_0: use v- or x_0-prediction and a
    sampler that is given it, such as `dpmpp_1(..., prediction=v_prediction)`.
    """
    check_type("schedule", schedule, DiscreteSchedule, remedy="such as linear()")
    alpha = np.sqrt(schedule.alpha_bar[1:])
    stretched = alpha[0] * (alpha - alpha[-1]) / (alpha[0] - alpha[-1])
    return DiscreteSchedule(np.concatenate([np.ones(1), stretched**2]))


@checked(num_train_steps=check_count)
def uniform_times(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Return num_steps + 1 times from num_train_steps down to 0, spacing as equal as integers can.

    Times [N+1], for example 1000, 980, ..., 20, 0.

    Raises:
      ValueError: if num_steps is not in 1 ... num_train_steps.
    """
    check_count("num_steps", num_steps, most=num_train_steps,
                remedy="a discrete schedule has one step per training time at most")  # fmt: skip
    return num_train_steps * np.arange(num_steps, -1, -1) // num_steps
