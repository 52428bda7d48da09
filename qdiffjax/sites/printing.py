"""A list of sites as a table."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qdiffjax._tables import Table
from qdiffjax.sites.storage import stored_elements

if TYPE_CHECKING:
    from qdiffjax.sites.records import Site


def sites_table(sites: "Sequence[Site]", opaque: Iterable[str] | None = None) -> Table:
    """Return the table of sites: operands, multiply-accumulates, parameters and what is unusual.

    Args:
      sites: from `list_sites`.
      opaque: from `sites.opaque`: what hides products that no rule can reach; None if that is not
        known.
    """
    marked = any(map(remarks, sites))
    columns = ("site", "kind", "operands", "MACs", "parameters", *(("remarks",) if marked else ()))
    rows = tuple(
        (s.name, s.kind, operands(s), *counts(s), *((remarks(s),) if marked else ())) for s in sites
    )
    macs, parameters = sum(s.macs for s in sites), sum(stored_elements(sites))
    total = (f"{macs:,} multiply-accumulates a call at these shapes, {parameters:,} weights; a "
             "star marks the weight among the operands.")  # fmt: skip
    return Table(f"{len(sites)} sites, in the order of evaluation", columns, rows,
                 (total, *out_of_reach(opaque)))  # fmt: skip


def operands(site: "Site") -> str:
    """Write the shapes of a site's operands, the weight with a star: 1x8x8x1, 3x3x1x8*."""
    shapes = ("x".join(map(str, shape)) or "scalar" for shape in site.shapes)
    return ", ".join(text + "*" * (i == site.weight) for i, text in enumerate(shapes))


def counts(site: "Site") -> tuple[int | None, int | None]:
    """Return multiply-accumulates and parameters of a site, None where it has none."""
    return site.macs or None, site.parameters or None


def remarks(site: "Site") -> str:
    """Say what is unusual about a site: a weight that is no parameter, numbers not real."""
    unusual = ("constant" * site.is_constant, "" if site.is_real else site.dtype)
    return ", ".join(filter(None, unusual))


def out_of_reach(opaque: Iterable[str] | None) -> tuple[str, ...]:
    """Return a line for each product that no rule can reach, or one that says there is none."""
    if opaque is None:
        return ()
    hidden = tuple(f"Out of reach of every rule: {what}." for what in opaque)
    return hidden or ("Every product is a site; nothing is out of reach.",)
