"""A function as named sites, and the same function under a rule.

`sites(eps_fn, params, x, t)` lists where a network multiplies; `transform(eps_fn, rule)` gives the
same function with something done there. Networks are traced, never edited.

    network ── sites ──> names, shapes ── Recipe ──> prepare ──> Quantized(site_inputs)
                                                                     │
    rules: plain, quantize, perturb, observe, local_errors, gated ───┴──> transform ──> g
           lower: the same in real low precision, from `prepare_codes`, `stored` as kernels read

A site is named by the path of its weight (`down_0_block_0/conv_1/kernel`); `#2` marks the second
use of a weight, `[i]` the iteration of a scan over layers, `dot_0` a product of activations.
"""

from qdiffjax.program import rules
from qdiffjax.program.codes import Stored, prepare_codes, stored
from qdiffjax.program.convolutions import canonical_convolutions
from qdiffjax.program.lower import lower, lowering
from qdiffjax.program.plan import Site
from qdiffjax.program.quantized import (
    Quantized,
    drop_weights,
    full_call,
    gated_call,
    merge,
    quantized_call,
)
from qdiffjax.program.recipe import (
    Recipe,
    SiteBits,
    output_channels,
    parse_shorthand,
    prepare,
    uniform,
    weight_operands,
    whole_tensor,
)
from qdiffjax.program.sites import match, opaque, site, sites
from qdiffjax.program.transform import transform

__all__ = [
    "Quantized",
    "Recipe",
    "Site",
    "SiteBits",
    "Stored",
    "canonical_convolutions",
    "drop_weights",
    "full_call",
    "gated_call",
    "lower",
    "lowering",
    "match",
    "merge",
    "opaque",
    "output_channels",
    "parse_shorthand",
    "prepare",
    "prepare_codes",
    "quantized_call",
    "rules",
    "site",
    "sites",
    "stored",
    "transform",
    "uniform",
    "weight_operands",
    "whole_tensor",
]
