"""Recipe algebra: predicted errors of sites are vectors that add.

    E(recipe) = sum_l e_l(b_l),     |E|^2 = sum_{l,m} K[(l, b_l), (m, b_m)] + sum_l v_l(b_l)

with e_l(b) the final error, on one batch of noise, of site l alone at choice b, K their Gram
matrix, and v what has no direction that could be predicted. One set of runs prices every recipe.
"""

import dataclasses
import functools

import numpy as np

from qdiffjax._checks import check_type, require
from qdiffjax._tables import Table
from qdiffjax.strategies.choices import Choices
from qdiffjax.strategies.trials import Trial


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ErrorAlgebra:
    """Predicted errors of the final samples, by site and choice.

    Attributes:
      choices: what the sites may be.
      vectors: e_l(b) [sites, choices, samples, *shape], float32; zeros where not offered.
      variances: v_l(b), mean square that adds as squares [sites, choices].
      around: the pick at which the vectors were taken, None for full precision.
      num_runs: sampling runs of as many samples that it took.
    """

    choices: Choices
    vectors: np.ndarray
    variances: np.ndarray
    around: np.ndarray | None
    num_runs: int

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """K, mean over samples and elements [sites, choices, sites, choices], float64."""
        shape = self.vectors.shape[:2]
        rows = self.vectors.reshape(shape[0] * shape[1], -1).astype(np.float64)
        return (rows @ rows.T / rows.shape[1]).reshape(*shape, *shape)

    @property
    def alone(self) -> np.ndarray:
        """RMSE of each site alone at each choice [sites, choices]; infinite where not offered."""
        places = np.arange(len(self.choices.sites))
        squares = np.einsum("lbb->lb", self.gram[places, :, places]) + self.variances
        return np.where(np.isfinite(self.choices.bits), np.sqrt(squares), np.inf)

    def predicted(self, pick) -> float:
        """Return the RMSE of a recipe, errors added as vectors."""
        places = np.arange(len(self.choices.sites))
        pick = np.asarray(pick)
        entries = self.gram[places, pick][:, places, pick]
        return float(np.sqrt(max(entries.sum(), 0.0) + self.variances[places, pick].sum()))

    def additive(self, pick) -> float:
        """Return the RMSE of a recipe if errors of sites did not correlate: squares are added."""
        places = np.arange(len(self.choices.sites))
        return float(np.sqrt(np.sum(self.alone[places, np.asarray(pick)] ** 2)))

    def cosines(self, pick) -> np.ndarray:
        """Return how alike the errors of pairs of sites are at a pick [sites, sites].

        <e_l, e_m> / |e_l| |e_m|: 1 on the diagonal, -1 where two cancel; 0 beside a site without
        error.
        """
        places, pick = np.arange(len(self.choices.sites)), self.choices.checked(pick)
        entries = self.gram[places, pick][:, places, pick]
        size = np.sqrt(np.diag(entries))
        size = np.where(size > 0, size, np.inf)
        return entries / np.outer(size, size)

    def table(self) -> Table:
        """Return the RMSE of each site alone at each choice."""
        rows = tuple(
            (name, *(float(e) if np.isfinite(e) else None for e in row))
            for name, row in zip(self.choices.sites, self.alone, strict=True)
        )
        return Table(
            "Predicted RMSE of the final samples, each site alone",
            ("site", *self.choices.names), rows,
            (f"{self.vectors.shape[2]} noises, {self.num_runs} sampling runs.",),
        )  # fmt: skip

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def error_algebra(noise: Trial, around=None, *, progress: bool = False) -> ErrorAlgebra:
    """Return the error vector of every site at every choice, each from a run of its own.

        around None:   e_l(b) = x_0(site l at b, all others in full precision) - x_0
        a pick c:      e_l(b) = (x_0(c) - x_0) / L + x_0(c with b at site l) - x_0(c)

    of L sites. A run has the curvature of its own site in it, which first order leaves out, and
    costs half of a JVP. Around a pick the sum is exact at the pick itself and at those that differ
    from it at one site. What a choice rounds of activations has no direction that other noise
    would share: its mean square is a variance, at the price of two further runs.

    Args:
      noise: from `trial`; what is found on it must be checked on other noise.
      around: the pick around which sites are changed; None for full precision.
      progress: show a progress bar.
    """
    from tqdm import tqdm

    check_type("noise", noise, Trial, remedy="trial(choices, key, num_samples)")
    choices = noise.choices
    num = len(choices.sites)
    base = [None] * num if around is None else [int(k) for k in choices.checked(around)]
    start = noise.full if around is None else noise.final(base, activations=False)
    shared = (start - noise.full) / num
    vectors = np.zeros((*choices.bits.shape, *noise.full.shape), np.asarray(shared).dtype)
    variances = np.zeros(choices.bits.shape)
    num_runs = 1 if around is None else 2
    for site, k in tqdm(np.argwhere(np.isfinite(choices.bits)), disable=not progress, unit="run"):
        if base[site] == k:
            vectors[site, k] = shared
        else:
            moved = noise.final([*base[:site], int(k), *base[site + 1 :]], activations=False)
            vectors[site, k] = moved - start + shared
            num_runs += 1
        if choices.rounds_activations[k]:
            alone: list = [None] * num
            alone[site] = int(k)
            rounded = noise.final(alone) - noise.final(alone, activations=False)
            variances[site, k] = np.mean(np.square(np.asarray(rounded, np.float64)))
            num_runs += 2
    require(np.isfinite(vectors).all(), "error_algebra", got="samples with NaN or infinity",
            expected="finite samples", remedy="leave out the choices that overflow")  # fmt: skip
    return ErrorAlgebra(choices, vectors, variances,
                        None if around is None else np.asarray(base), num_runs)  # fmt: skip
