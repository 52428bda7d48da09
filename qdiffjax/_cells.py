"""A ledger as numbers: its cells, their shares, sums and the largest of them. Needs no JAX."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qdiffjax._checks import require
from qdiffjax._tables import Table, data_frame

SHARE = "share, %"
MAX_DEFECT = 0.05  # more than this of a ledger's change is not in its entries: then it warns


class Cell(NamedTuple):
    """A site in a range of sampler steps, and its signed share of the whole.

    Steps are counted from the noise end; both ends of the range belong to it. `share` is in
    percent.
    """

    site: str
    first_step: int
    last_step: int
    share: float


def top_cells(ledger, sites, num: int = 5, num_ranges: int = 5) -> list[Cell]:
    """Return the cells that cost most, the most expensive first.

    The steps are cut into `num_ranges` ranges of equal length (one longer where they do not
    divide), fewer if there are fewer steps; a cell's share is the sum of its entries over the sum
    of all entries. Entries that lower the error are negative, so they come last.

    Args:
      ledger: contributions [N, S] of N steps and S sites to the squared error.
      sites: S names.
      num: how many cells.
      num_ranges: how many ranges of steps.

    Raises:
      ValueError: the shape of `ledger` does not fit the names.
    """
    percent = shares(ledger, sites)
    ranges = np.array_split(np.arange(len(percent)), min(num_ranges, len(percent)))
    cells = [
        Cell(str(site), int(steps[0]), int(steps[-1]), float(percent[steps, i].sum()))
        for steps in ranges
        for i, site in enumerate(sites)
    ]
    return sorted(cells, key=lambda cell: -cell.share)[:num]


def shares(ledger, sites: Sequence[Any]) -> np.ndarray:
    """Return each entry [N, S] over the sum of all, in percent; zeros if that is zero.

    Raises:
      ValueError: the shape of `ledger` does not fit the names.
    """
    ledger = np.asarray(ledger, np.float64)
    require(ledger.ndim == 2 and ledger.shape[1] == len(sites),
            got=f"a ledger of shape {ledger.shape}",
            expected=f"[steps, {len(sites)}]",
            remedy="pass the ledger and the sites of one network")  # fmt: skip
    total = ledger.sum()
    return 100.0 * ledger / total if total else np.zeros_like(ledger)


def block_name(site: str, depth: int = 1) -> str:
    """Return the block of a site: the first `depth` folders of its path, and its loop index.

    `down_0/conv_1/kernel` is of the block `down_0`, `layers/mlp/kernel[3]` of `layers[3]`.
    """
    path, bracket, index = site.partition("#")[0].partition("[")
    folders = path.split("/")[:-1] or [path]
    return "/".join(folders[:depth]) + bracket + index


@dataclasses.dataclass(frozen=True, repr=False)
class Cells:
    """The ledger of a run, averaged over its samples: what each (site, step) adds to the error.

    Attributes:
      sites: S names.
      contributions: [N, S], signed, in units of `quantity`; positive raises it.
      quantity: what the entries add up to, in words.
      defect: median of |sum of entries - change| / |change| over samples; None of a forecast.
      num_samples: how many were averaged.
    """

    sites: tuple[str, ...]
    contributions: np.ndarray
    quantity: str
    defect: float | None
    num_samples: int

    def __str__(self):
        return str(self.top())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.top()._repr_html_()

    def ordered(self, sites: Sequence[str]) -> "Cells":
        """Return them with their sites in this order; compiled programs sort them by name."""
        order = [self.sites.index(name) for name in sites if name in self.sites]
        order += sorted(set(range(len(self.sites))) - set(order))
        return dataclasses.replace(self, sites=tuple(self.sites[i] for i in order),
                                   contributions=self.contributions[:, order])  # fmt: skip

    def shares(self) -> np.ndarray:
        """Return the share of each cell in the sum of all, signed, in percent [N, S]."""
        return shares(self.contributions, self.sites)

    def top(self, num: int = 10) -> Table:
        """Return the cells that are largest in size, whether they raise or lower the error."""
        num_steps, num_sites = self.contributions.shape
        percent = self.shares()
        order = np.argsort(-np.abs(self.contributions), axis=None, kind="stable")[:num]
        steps, columns = np.unravel_index(order, percent.shape)
        rows = tuple(
            (self.sites[s], int(i), float(self.contributions[i, s]), float(percent[i, s]))
            for i, s in zip(steps, columns, strict=True)
        )
        held = (f"These {len(rows)} of {num_steps} x {num_sites} cells hold "
                f"{percent[steps, columns].sum():.1f} % of the sum.")  # fmt: skip
        return self._table(", largest cells", ("site", "step"), rows, held)

    def by_site(self) -> Table:
        """Return the sum over steps of each site, the largest first."""
        return self._grouped(" by site", "site", list(self.sites))

    def by_block(self, depth: int = 1) -> Table:
        """Return the sum over the sites of each block, the largest first.

        Args:
          depth: how many folders of a site's path name its block.
        """
        return self._grouped(" by block", "block", [block_name(s, depth) for s in self.sites])

    def by_step(self) -> Table:
        """Return the sum over sites of each step, from the noise end."""
        sums = zip(self.contributions.sum(1), self.shares().sum(1), strict=True)
        rows = tuple((i, float(c), float(share)) for i, (c, share) in enumerate(sums))
        return self._table(" by step", ("step",), rows)

    def to_dataframe(self):
        """Return a row for each cell as a pandas data frame: site, step, contribution, share.

        Raises:
          ImportError: pandas is not installed.
        """
        num_steps, num_sites = self.contributions.shape
        return data_frame({
            "site": np.tile(np.asarray(self.sites, object), num_steps),
            "step": np.repeat(np.arange(num_steps), num_sites),
            "contribution": self.contributions.ravel(), SHARE: self.shares().ravel(),
        })  # fmt: skip

    def _grouped(self, title: str, noun: str, names: Sequence[str]) -> Table:
        sums: dict[str, np.ndarray] = {}
        columns = np.stack([self.contributions.sum(0), self.shares().sum(0)], axis=1)
        for name, column in zip(names, columns, strict=True):
            sums[name] = sums.get(name, 0) + column
        largest = sorted(sums.items(), key=lambda item: -abs(item[1][0]))
        rows = tuple((name, float(c), float(share)) for name, (c, share) in largest)
        return self._table(title, (noun,), rows)

    def _table(self, title: str, keys: tuple[str, ...], rows, *notes: str) -> Table:
        what = f"Ledger{title}: parts of the {self.quantity}"
        samples = f"Mean of {self.num_samples} sample{'s' if self.num_samples > 1 else ''}"
        signs = f"{samples}; positive raises it, negative lowers it; steps count from noise."
        return Table(what, (*keys, "contribution", SHARE), rows,
                     (*notes, signs, self.defect_note()),
                     {SHARE: "+.1f", "contribution": "+.2e"})  # fmt: skip

    def defect_note(self) -> str:
        """Say how much of the change the entries miss, and what to do if it is much."""
        if self.defect is None:
            return "A forecast: what quantizing each cell alone would do; no sum to compare with."
        note = f"Defect, |sum of entries - change| / |change|: median {100 * self.defect:.2g} %"
        is_large = self.defect > MAX_DEFECT
        return note + ("; use more nodes." if is_large else ".")
