"""A discrete schedule read at real times."""

import dataclasses

import numpy as np

from qdiffjax.diffusion.processes import Process, Rates, log_exponent
from qdiffjax.diffusion.schedules import DiscreteSchedule, NoiseLevel


@dataclasses.dataclass(frozen=True)
class Interpolated(Process):
    """A discrete schedule read at real times 0 ... T: log alpha linear between the integers.

    So beta is constant on each step and every integer keeps its level; Lu et al. 2022a, app. D.1.

    Raises:
      ValueError: if alpha is zero at T.
    """

    schedule: DiscreteSchedule

    def __post_init__(self):
        if self.schedule.alpha_bar[-1] == 0:
            raise ValueError(
                "got a schedule of zero terminal SNR, expected alpha > 0 to interpolate log alpha; "
                "stay at its integer times"
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
