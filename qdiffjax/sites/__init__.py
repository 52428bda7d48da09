"""A function as named sites, and the same function under a rule.

`list_sites(eps_fn, params, x, t)` lists where a network multiplies; `transform(eps_fn, rule)` gives
the same function with something done there. Networks are traced, never edited. Nothing here knows
of precision: a rule that quantizes is `precision.quantize_site`.

A site is named by the path of its weight (`down_0_block_0/conv_1/kernel`); `#2` marks the second
use of a weight, `[i]` the iteration of a scan over layers, `dot_0` a product of activations. What
does not come from `params` is data; a constant that multiplies data is named by its line of source.
On request (`with_values`) values that are stored between products are sites too.
"""

from qdiffjax.sites import rules
from qdiffjax.sites.listing import edge, list_sites, match, site
from qdiffjax.sites.records import Site, Sites
from qdiffjax.sites.storage import stored_elements
from qdiffjax.sites.transforming import transform
from qdiffjax.sites.values import with_values
