"""Continuous forward processes with closed forms: x_t = alpha(t) x_0 + sigma(t) eps.

All solve dx = f(t) x dt + g(t) dw with f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2
(Karras et al. 2022, eq. 30), and are read like a `DiscreteSchedule`: process(t) in JAX,
process.exact(times) in NumPy float64. Frozen and hashed by their numbers: static arguments of jit.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_number, check_type, require
from qdiffjax._typing import Array, float_dtype
from qdiffjax.diffusion.schedules import DiscreteSchedule, NoiseLevel


class Rates(NamedTuple):
    """Of dx = drift x dt + sqrt(diffusion_squared) dw, per unit of time; leaves [*times]."""

    drift: Any
    diffusion_squared: Any


def half_log_snr(level: NoiseLevel) -> np.ndarray:
    """Return lambda = log(alpha / sigma), half of log_snr, in NumPy: inf at sigma = 0."""
    with np.errstate(divide="ignore"):
        return np.log(level.alpha) - np.log(level.sigma)


class Process(abc.ABC):
    """A forward process in continuous time; t = 0 is data, larger t is noisier."""

    @abc.abstractmethod
    def _level(self, t, xp) -> NoiseLevel:
        """Return alpha and sigma [*times] with the functions of xp = numpy or jax.numpy."""

    @abc.abstractmethod
    def _velocity(self, t, xp) -> NoiseLevel:
        """Return d alpha / dt and d sigma / dt [*times]."""

    @abc.abstractmethod
    def _time(self, log_snr: np.ndarray) -> np.ndarray:
        """Return the time [*times] at which 2 log(alpha / sigma) = log_snr."""

    def _rates(self, t, xp) -> Rates:
        """Return f = alpha' / alpha and g^2 = 2 sigma (sigma' - f sigma)."""
        level, speed = self._level(t, xp), self._velocity(t, xp)
        drift = speed.alpha / level.alpha
        return Rates(drift, 2 * level.sigma * (speed.sigma - drift * level.sigma))

    def __call__(self, t) -> NoiseLevel:
        """Return the level at t [*times] in JAX: the dtype of t, or the default for integers."""
        return self._level(jnp.asarray(t).astype(float_dtype(t)), jnp)

    def exact(self, times) -> NoiseLevel:
        """Return the level at times [*times] in NumPy float64, for tables."""
        return self._level(np.asarray(times, np.float64), np)

    def velocity(self, times) -> NoiseLevel:
        """Return d alpha / dt and d sigma / dt at times [*times] in NumPy float64."""
        return self._velocity(np.asarray(times, np.float64), np)

    def exact_rates(self, times) -> Rates:
        """Return drift and diffusion_squared at times [*times] in NumPy float64."""
        return self._rates(np.asarray(times, np.float64), np)

    def time(self, log_snr) -> np.ndarray:
        """Return the time [*times] at which 2 log(alpha / sigma) = log_snr; NumPy float64."""
        return self._time(np.asarray(log_snr, np.float64))

    def drift(self, t) -> Array:
        """Return f(t) = d log alpha / dt [*times] in JAX."""
        return self._rates(jnp.asarray(t).astype(float_dtype(t)), jnp).drift

    def diffusion_squared(self, t) -> Array:
        """Return g(t)^2 [*times] in JAX."""
        return self._rates(jnp.asarray(t).astype(float_dtype(t)), jnp).diffusion_squared


def log_exponent(log_snr) -> np.ndarray:
    """Return -2 log alpha at a log-SNR, variance preserved: log(1 + exp(-log_snr)) [*times]."""
    return np.logaddexp(0.0, -log_snr)


@dataclasses.dataclass(frozen=True)
class VP(Process):
    """Variance preserving: dx = -beta x / 2 dt + sqrt(beta) dw; Song et al. 2021, eqs. 11 and 32.

    alpha = exp(-B / 2),  sigma = sqrt(1 - exp(-B)),  B = beta_min t + (beta_max - beta_min) t^2 / 2

    Example:
      >>> import qdiffjax as qd
      >>> alpha, sigma = qd.VP()(0.5)
      >>> round(float(alpha**2 + sigma**2), 5)
      1.0
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        check_number("beta_min", self.beta_min, least=0)
        check_number("beta_max", self.beta_max, least=max(self.beta_min, 1e-12))

    def beta(self, t):
        """Return beta_min + t (beta_max - beta_min)."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t):
        """Return B(t), the integral of beta from 0 to t."""
        return (self.beta_min + (self.beta_max - self.beta_min) * t / 2) * t

    def _level(self, t, xp):
        big_b = self.integral(t)
        return NoiseLevel(xp.exp(-big_b / 2), xp.sqrt(-xp.expm1(-big_b)))

    def _velocity(self, t, xp):
        alpha, sigma = self._level(t, xp)
        return NoiseLevel(-self.beta(t) * alpha / 2, self.beta(t) * alpha**2 / (2 * sigma))

    def _rates(self, t, xp):
        return Rates(-self.beta(t) / 2, self.beta(t))

    def _time(self, log_snr):
        return self.time_of_integral(log_exponent(log_snr))

    def time_of_integral(self, big_b) -> np.ndarray:
        """Return t with B(t) = big_b, in the form of the root that does not cancel."""
        slope = self.beta_max - self.beta_min
        return 2 * big_b / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * big_b))


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP: VP's drift, sigma = 1 - exp(-B), g^2 = beta (1 - exp(-2 B)); Song et al., eq. 14."""

    def _level(self, t, xp):
        big_b = self.integral(t)
        return NoiseLevel(xp.exp(-big_b / 2), -xp.expm1(-big_b))

    def _velocity(self, t, xp):
        alpha, _ = self._level(t, xp)
        return NoiseLevel(-self.beta(t) * alpha / 2, self.beta(t) * alpha**2)

    def _rates(self, t, xp):
        return Rates(-self.beta(t) / 2, -self.beta(t) * xp.expm1(-2 * self.integral(t)))

    def _time(self, log_snr):
        # (1 - alpha^2) / alpha = 2 sinh(B / 2).
        return self.time_of_integral(2 * np.arcsinh(np.exp(-log_snr / 2) / 2))


@dataclasses.dataclass(frozen=True)
class VE(Process):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, 0 <= t <= 1.

    Song et al. 2021, eqs. 9 and 31. Its time 0 is sigma_min, not clean data, as in their code.

    Example:
      >>> import qdiffjax as qd
      >>> alpha, sigma = qd.VE()(1.0)
      >>> float(alpha), round(float(sigma), 3)
      (1.0, 50.0)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        check_number("sigma_min", self.sigma_min, above=0)
        check_number("sigma_max", self.sigma_max, above=self.sigma_min)

    @property
    def log_ratio(self) -> float:
        """log(sigma_max / sigma_min)."""
        return float(np.log(self.sigma_max / self.sigma_min))

    def _level(self, t, xp):
        return NoiseLevel(xp.ones_like(t), self.sigma_min * xp.exp(self.log_ratio * t))

    def _velocity(self, t, xp):
        return NoiseLevel(xp.zeros_like(t), self.log_ratio * self._level(t, xp).sigma)

    def _time(self, log_snr):
        return (-log_snr / 2 - np.log(self.sigma_min)) / self.log_ratio


@dataclasses.dataclass(frozen=True)
class EDM(Process):
    """The process of Karras et al. 2022: alpha = 1, sigma = t, so time is the noise level.

    Example:
      >>> import qdiffjax as qd
      >>> alpha, sigma = qd.EDM()(2.0)
      >>> float(alpha), float(sigma)
      (1.0, 2.0)
    """

    def _level(self, t, xp):
        return NoiseLevel(xp.ones_like(t), t)

    def _velocity(self, t, xp):
        return NoiseLevel(xp.zeros_like(t), xp.ones_like(t))

    def _time(self, log_snr):
        return np.exp(-log_snr / 2)


@dataclasses.dataclass(frozen=True)
class Flow(Process):
    """Rectified flow, the straight path: alpha = 1 - t, sigma = t; Liu et al. 2023, Lipman 2023.

    The flow x_0 -> eps has velocity eps - x_0. At t = 1, alpha = 0 and f is infinite.

    Example:
      >>> import qdiffjax as qd
      >>> alpha, sigma = qd.Flow()(0.25)
      >>> float(alpha), float(sigma)
      (0.75, 0.25)
    """

    def _level(self, t, xp):
        return NoiseLevel(1 - t, t)

    def _velocity(self, t, xp):
        return NoiseLevel(-xp.ones_like(t), xp.ones_like(t))

    def _rates(self, t, xp):
        return Rates(-1 / (1 - t), 2 * t / (1 - t))

    def _time(self, log_snr):
        return 1 / (1 + np.exp(log_snr / 2))


@dataclasses.dataclass(frozen=True)
class Cosine(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), 0 <= t <= 1; Salimans & Ho 2022, section 2.

    With the offset and the clipped end of Nichol & Dhariwal: `Interpolated(cosine())`.
    """

    def _level(self, t, xp):
        return NoiseLevel(xp.cos(np.pi / 2 * t), xp.sin(np.pi / 2 * t))

    def _velocity(self, t, xp):
        alpha, sigma = self._level(t, xp)
        return NoiseLevel(-np.pi / 2 * sigma, np.pi / 2 * alpha)

    def _rates(self, t, xp):
        tangent = xp.tan(np.pi / 2 * t)
        return Rates(-np.pi / 2 * tangent, np.pi * tangent)

    def _time(self, log_snr):
        return 2 / np.pi * np.arctan(np.exp(-log_snr / 2))


@dataclasses.dataclass(frozen=True)
class Interpolated(Process):
    """A discrete schedule read at real times 0 ... T: log alpha linear between the integers.

    So beta is constant on each step and every integer keeps its level; Lu et al. 2022a, app. D.1.

    Raises:
      ValueError: if alpha is zero at T.
    """

    schedule: DiscreteSchedule

    def __post_init__(self):
        check_type("schedule", self.schedule, DiscreteSchedule, remedy="such as cosine()")
        require(
            self.schedule.alpha_bar[-1] != 0,
            got="a schedule of zero terminal SNR",
            expected="alpha > 0 to interpolate log alpha",
            remedy="stay at its integer times",
        )

    def integral(self, t, xp):
        """Return B(t) = -log alpha_bar [*times]."""
        table = -np.log(self.schedule.alpha_bar)
        knots = np.arange(table.size, dtype=np.float64)
        return xp.interp(t, xp.asarray(knots, t.dtype), xp.asarray(table, t.dtype))

    def _level(self, t, xp):
        big_b = self.integral(t, xp)
        return NoiseLevel(xp.exp(-big_b / 2), xp.sqrt(-xp.expm1(-big_b)))

    def _velocity(self, t, xp):
        (alpha, sigma), beta = self._level(t, xp), self._rates(t, xp).diffusion_squared
        return NoiseLevel(-beta * alpha / 2, beta * alpha**2 / (2 * sigma))

    def _rates(self, t, xp):
        betas = np.diff(-np.log(self.schedule.alpha_bar))
        # At an integer the step below it counts: that is the one a sampler is about to take.
        index = xp.clip(xp.ceil(t).astype(int) - 1, 0, betas.size - 1)
        beta = xp.asarray(betas, t.dtype)[index]
        return Rates(-beta / 2, beta)

    def _time(self, log_snr):
        table = -np.log(self.schedule.alpha_bar)
        return np.interp(log_exponent(log_snr), table, np.arange(table.size, dtype=np.float64))
