"""Laws of the input, by what a quantizer needs of them: moments up to any point, in closed form.

Analysis at set-up time: NumPy, float64.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from qdiffjax._checks import check_number

NUM_MOMENTS = 4
FAR = 40.0  # standard deviations beyond which a Gaussian has no mass in float64


class Moments(Protocol):
    """What the error of a quantizer depends on."""

    def cumulative(self, x: np.ndarray) -> np.ndarray:
        """Return the integral of u^k dF(u) over u <= x, for k = 0..3: [4, *shape] of x [*shape]."""


class Distribution(Moments, Protocol):
    """A law on the real line."""

    @property
    def entropy(self) -> float:
        """Differential entropy, -integral p log p  [nats]; -inf with atoms."""

    @property
    def cube_norm(self) -> float:
        """(integral p^(1/3))^3, in squared units of x: the constant of Panter and Dite."""

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """Return the least x with F(x) >= p [*shape], p in (0, 1)."""


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2)."""

    std: float = 1.0
    mean: float = 0.0

    def __post_init__(self):
        check_number("std", self.std, above=0)
        check_number("mean", self.mean)

    @property
    def entropy(self) -> float:
        """log(2 pi e std^2) / 2."""
        return math.log(2 * math.pi * math.e) / 2 + math.log(self.std)

    @property
    def cube_norm(self) -> float:
        """6 sqrt(3) pi std^2."""
        return 6 * math.sqrt(3) * math.pi * self.std**2

    def cumulative(self, x) -> np.ndarray:
        """Return (Phi, -phi, Phi - z phi, -(z^2 + 2) phi), moved to mean + std z."""
        import scipy.special

        z = np.clip((np.asarray(x, np.float64) - self.mean) / self.std, -FAR, FAR)
        mass, p = scipy.special.ndtr(z), np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return shifted(np.stack([mass, -p, mass - z * p, -(z**2 + 2) * p]), self.mean, self.std)

    def quantile(self, p) -> np.ndarray:
        """Return mean + std Phi^-1(p)."""
        import scipy.special

        return self.mean + self.std * scipy.special.ndtri(p)


@dataclasses.dataclass(frozen=True)
class Laplace:
    """Density exp(-|x| / b) / (2 b), b = std / sqrt(2)."""

    std: float = 1.0

    def __post_init__(self):
        check_number("std", self.std, above=0)

    @property
    def entropy(self) -> float:
        """1 + log(2 b)."""
        return 1 + math.log(math.sqrt(2) * self.std)

    @property
    def cube_norm(self) -> float:
        """54 std^2."""
        return 54 * self.std**2

    def cumulative(self, x) -> np.ndarray:
        """Return return, for z = x / b <= 0: exp(z) / 2 times (1, z-1, z^2-2z+2, z^3-3z^2+6z-6)."""
        z = np.clip(np.asarray(x, np.float64) * math.sqrt(2) / self.std, -700, 700)
        n = -np.abs(z)
        one = np.ones_like(n)
        left = np.exp(n) / 2 * np.stack(
            [one, n - 1, (n - 2) * n + 2, ((n - 3) * n + 6) * n - 6]
        )  # fmt: skip
        odd = np.array([1.0, -1.0, 1.0, -1.0]).reshape(-1, *[1] * z.ndim)
        whole = np.array([1.0, 0.0, 2.0, 0.0]).reshape(odd.shape)
        return shifted(np.where(z <= 0, left, whole - odd * left), 0.0, self.std / math.sqrt(2))

    def quantile(self, p) -> np.ndarray:
        """Return -b sign(p - 1/2) log(1 - |2 p - 1|)."""
        side = 2 * np.asarray(p, np.float64) - 1
        return -self.std / math.sqrt(2) * np.sign(side) * np.log1p(-np.abs(side))


@dataclasses.dataclass(frozen=True)
class Folded:
    """Law of |x| for x of a symmetric law without an atom at zero, by its moments alone."""

    base: Moments

    def cumulative(self, x) -> np.ndarray:
        """Return twice the moments between zero and x."""
        u = np.maximum(np.asarray(x, np.float64), 0)
        return 2 * (self.base.cumulative(u) - self.base.cumulative(np.zeros_like(u)))


def shifted(moments: np.ndarray, shift, factor=1.0) -> np.ndarray:
    """Return the moments of shift + factor u [4, *shape] from those of u [4, *shape]: the binomial
    theorem.
    """
    return np.stack(
        [
            sum(math.comb(k, i) * shift ** (k - i) * factor**i * moments[i] for i in range(k + 1))
            for k in range(NUM_MOMENTS)
        ]
    )
