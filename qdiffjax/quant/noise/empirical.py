"""Laws known from data: piecewise-uniform densities, with atoms."""

import dataclasses
import math

import numpy as np

from qdiffjax._checks import FROM_0, check_count, check_numbers, checked, require
from qdiffjax.quant.granularity import check_finite
from qdiffjax.quant.noise.distributions import NUM_MOMENTS

NUM_OCTAVES = 30  # of a histogram, down from max|x|; below is one bin


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Piecewise-uniform density: mass masses[i] spread evenly over edges[i]..edges[i + 1].

    A bin of no width is an atom. Samples, a uniform law and binned data are all of this form; see
    `histogram`.

    Attributes:
      edges: not descending, in units of x [n + 1].
      masses: >= 0, sum 1 [n].

    Raises:
      ValueError: edges that descend, or masses of another length, negative or all zero.
    """

    edges: np.ndarray
    masses: np.ndarray

    def __post_init__(self):
        edges, masses = np.asarray(self.edges, np.float64), np.asarray(self.masses, np.float64)
        total = masses.sum()
        is_good = edges.shape == (masses.size + 1,) and np.all(np.diff(edges) >= 0)
        require(
            is_good and np.all(masses >= 0) and 0 < total < math.inf, "edges, masses",
            got=f"{edges.shape} and {masses.shape} of sum {total}",
            expected="[n + 1] not descending and [n] >= 0 with a positive sum",
            remedy="see noise.histogram",
        )  # fmt: skip
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "masses", masses / total)

    @property
    def entropy(self) -> float:
        """-sum m log(m / width) over bins with mass."""
        m, width = self.masses[self.masses > 0], np.diff(self.edges)[self.masses > 0]
        return -math.inf if np.any(width == 0) else float(-np.sum(m * np.log(m / width)))

    @property
    def cube_norm(self) -> float:
        """(sum m^(1/3) width^(2/3))^3."""
        return float(np.sum(np.cbrt(self.masses * np.diff(self.edges) ** 2)) ** 3)

    def cumulative(self, x) -> np.ndarray:
        """Return the whole bins below x, and the part of the bin that x is in."""
        a, b = self.edges[:-1], self.edges[1:]
        whole = self.masses * _mean_powers(a, b)
        below = np.concatenate([np.zeros((NUM_MOMENTS, 1)), np.cumsum(whole, 1)], 1)
        x = np.asarray(x, np.float64)
        u = np.clip(x.ravel(), self.edges[0], self.edges[-1])
        i = np.searchsorted(self.edges, u, side="right") - 1  # the last edge has no bin
        start, end, mass = (np.append(v, v[-1:])[i] for v in (a, b, self.masses))
        width = np.where((i < a.size) & (end > start), end - start, np.inf)
        part = mass * (u - start) / width * _mean_powers(start, u)
        moments = np.where(x.ravel() < self.edges[0], 0.0, below[:, i] + part)
        return moments.reshape(NUM_MOMENTS, *x.shape)

    def quantile(self, p) -> np.ndarray:
        """Return quantiles [*shape of p], linear within bins."""
        has_mass = self.masses > 0
        a, b, m = self.edges[:-1][has_mass], self.edges[1:][has_mass], self.masses[has_mass]
        above = np.cumsum(m)
        i = np.minimum(np.searchsorted(above, p), m.size - 1)
        return a[i] + (b - a)[i] * np.clip(1 - (above[i] - p) / m[i], 0, 1)


@checked(x=check_numbers, per_octave=check_count, num_atoms=FROM_0)
def histogram(x, weights=None, *, per_octave: int = 64, num_atoms: int = 1024) -> Histogram:
    """Bin finite data by their logarithm, and keep the largest: predicts the error of any format.

        bins between +-max|x| 2^(-j / per_octave), j = 0..30 per_octave,
        each shrunk to the smallest and largest number in it, evenly spread between;
        atoms at the num_atoms numbers of largest (weight * occurrences) x^2

    Bins must be narrow against the steps where the data are dense: for float formats and
    codebooks, steps shrink with |x|, and so do these bins. As each keeps its ends, numbers that
    are alone in their bin or repeat (exact zeros) stay where they are; so do the ends of the
    data, with bins of their own, which a scale from absmax puts on a level.

    Where in its step a number lies cannot be read from a bin wider than the step, so that n
    numbers of equal size leave the mean of e^2 uncertain by .9 / sqrt(n). The error of floats
    grows with |x|: a few outliers decide it, and n is (sum x^2)^2 / sum x^4. Hence the atoms; data
    of at most num_atoms distinct numbers are represented exactly. At most 3 * 6000 numbers,
    whatever x; n log n.

    Args:
      x: data [*shape], at least one element.
      weights: how much each counts, broadcasting against x; None = 1.
      per_octave: bins a factor of two.
      num_atoms: distinct numbers that are kept as they are.

    Raises:
      ValueError: data that are empty or not finite.
    """
    x = np.asarray(x, np.float64)
    require(x.size, "x", got="no elements", expected="data", remedy="leave empty sites out")
    check_finite(x)
    order = np.argsort(x, axis=None)
    weights = np.broadcast_to(1.0 if weights is None else weights, x.shape).ravel()[order]
    x = x.ravel()[order]
    top = max(-x[0], x[-1]) * 2.0 ** (-np.arange(per_octave * NUM_OCTAVES + 1.0) / per_octave)
    # Scales are rounded, so that the largest numbers of many channels are equal up to 1e-7.
    ends = x[0] + abs(x[0]) * 2.0**-20, x[-1] - abs(x[-1]) * 2.0**-20
    cuts = np.searchsorted(x, np.concatenate([top, -top, ends]))
    cuts = np.unique(np.concatenate([[0, x.size], cuts, _around_atoms(x, weights, num_atoms)]))
    edges = np.stack([x[cuts[:-1]], x[cuts[1:] - 1]], 1)
    masses = np.zeros_like(edges)  # and none between the bins
    masses[:, 0] = np.add.reduceat(weights, cuts[:-1])
    return Histogram(edges.ravel(), masses.ravel()[:-1])


def _around_atoms(x, weights, num_atoms) -> np.ndarray:
    """Return the cuts of sorted x [n] before and behind each of the numbers that matter most."""
    ends = np.concatenate([[0], np.flatnonzero(np.diff(x)) + 1, [x.size]])
    matter = np.add.reduceat(weights, ends[:-1]) * x[ends[:-1]] ** 2
    kept = np.argsort(matter)[matter.size - min(num_atoms, matter.size) :]
    return np.concatenate([ends[kept], ends[kept + 1]])


def _mean_powers(a, b) -> np.ndarray:
    """Return mean of u^k over a..b for k = 0..3 [4, n]: (b^(k+1) - a^(k+1)) / (k + 1) / (b - a).

    Written as a sum, it keeps its digits however narrow a..b is.
    """
    sums = [sum(a**i * b ** (k - i) for i in range(k + 1)) for k in range(NUM_MOMENTS)]
    return np.stack(sums) / np.arange(1, NUM_MOMENTS + 1)[:, None]
