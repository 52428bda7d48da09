"""Which site stores which elements of the parameters: tied weights and slices once each."""

import collections
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdiffjax.sites.records import Site

LAYER = re.compile(r"(?:\[\d+\])*$")  # iteration of the loops around a site, at the end of its name


def stored_elements(sites: "Iterable[Site]") -> list[int]:
    """Return the elements of each site's weight that no earlier site stores; 0 for constants.

    Each part of a parameter is stored once. Iterations of a loop, and parts whose index is
    computed, are taken to differ until they are as many elements as the parameter has.
    """
    stored: list[int] = []
    seen = set()
    used: collections.Counter[str | None] = collections.Counter()
    for s in sites:
        key = (s.weight_path, LAYER.findall(s.name)[0], s.part)
        is_new = not s.is_constant and (s.part is None or key not in seen)
        left = s.weight_size - used[s.weight_path] if used[s.weight_path] else s.parameters
        stored.append(min(s.parameters, max(left, 0)) if is_new else 0)
        used[s.weight_path] += stored[-1]
        seen.add(key)
    return stored
