"""M(b) and C(b): what a network's products hold, move and multiply at given widths.

Costs are functions of two arrays of widths and broadcast over leading axes: [S] is a recipe,
[N, S] widths by (step, site), [B, 1] a table of B candidate widths at every site, from which an
allocation of bits chooses. NumPy widths give exact integers. JAX widths, which may be traced, give
floats, linear in the bits of an array, so that a real-valued width has a derivative.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import FROM_0, check_count, check_names, check_type, checked, require
from qdiffjax.hardware.chips import check_full
from qdiffjax.precision import Recipe, SiteBits, grid_numbers, width_of
from qdiffjax.quant import MAX_BITS
from qdiffjax.sites import Site, stored_elements

SCALE_BYTES = 4  # a float32


class Counts(NamedTuple):
    """The products of a network, counted; arrays [S] of int64, in the order of evaluation.

    Attributes:
      names: of the sites.
      macs: multiply-accumulates of a call; those with padding are among them.
      weights: elements of the weight operand, 0 for a product of activations.
      stored: the same, but 0 where an earlier site uses the same part of the same parameter, and
        for constants, which are no parameters. Slices of one parameter, such as three projections
        in one kernel, are stored each. Iterations of a loop, and parts whose index is computed, are
        taken to differ until they are as many as the parameter has elements.
      scales: of a quantized weight, its zero points too.
      activations: elements of the other operands.
      outputs: elements of the result.
      marks: names of the sites that multiply nothing, which a recipe may name too.
    """

    names: tuple[str, ...]
    macs: Any
    weights: Any
    stored: Any
    scales: Any
    activations: Any
    outputs: Any
    marks: tuple[str, ...] = ()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("weight", "activation", "stored"), meta_fields=("full",),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Widths:
    """Bits of the operands at every site, and of what is not quantized.

    weight, activation: [..., S]; `full`: static, 32 for float32, 16 for bfloat16. An operand of
    `full` bits is a real number and has no scale; narrower ones are codes. stored: [..., S], bits
    in memory of a number of the weight where they are others than those that multiply, as where it
    is rounded anew at every call; None for the same.
    """

    weight: Any
    activation: Any
    full: int = 32
    stored: Any = None

    @property
    def held(self) -> Any:
        """Bits in memory of a number of the weight [..., S]."""
        return self.weight if self.stored is None else self.stored


def count(sites: Sequence[Site], *, recipe: Recipe | None = None) -> Counts:
    """Count the products among the sites; `input`, `output` and marks multiply nothing.

    Args:
      sites: of `list_sites`; their shapes hold the batch.
      recipe: whose weights have the scales, and zero points, that are counted, as
        `precision.grid_numbers` says; None counts a scale for each output channel.
    """
    are_sites = isinstance(sites, tuple | list) and all(isinstance(s, Site) for s in sites)
    require(are_sites, "sites", got=f"a {type(sites).__name__}", expected="sites of a network",
            remedy="denoiser.sites()", error=TypeError)  # fmt: skip
    products = [s for s in sites if s.kind in ("dot", "conv")]
    marks = tuple(s.name for s in sites if s.kind not in ("dot", "conv"))
    stored = stored_elements(products)
    columns = (
        [s.macs for s in products], [s.parameters for s in products], stored,
        [0 if s.weight is None else grid_numbers(s, _entry(recipe, s)) for s in products],
        [sum(math.prod(s.shapes[i]) for i in s.activations) for s in products],
        [math.prod(s.out_shape) for s in products],
    )  # fmt: skip
    names = tuple(s.name for s in products)
    arrays: list[Any] = [np.array(c, np.int64) for c in columns]
    return Counts(names, *arrays)._replace(marks=marks)


def _entry(recipe: Recipe | None, site: Site) -> Any:
    """Return how a recipe rounds a weight; without one, integers by output channel."""
    return MAX_BITS if recipe is None else recipe.bits.get(site.name, SiteBits()).weight


@checked(full=check_full)
def widths(
    counts: Counts, recipe: Recipe, *, full: int = 32, extra_bits: int | None = None
) -> Widths:
    """Return the widths [S] of a recipe; what it does not name has `full` bits.

    A block format has its scales in its bits. A weight that is rounded anew at every call is codes
    in the product and in memory itself, or has `extra_bits` more than its codes where they
    alternate with period 2^extra_bits, see `precision.shaped`. Raises ValueError for a recipe by
    step, whose cost is that of each of its `tables`.
    """
    check_type("recipe", recipe, Recipe, remedy="precision.uniform(sites, ...)")
    check_names("recipe", recipe.bits, (*counts.names, *counts.marks))
    require(not recipe.phases, "recipe", got="one by step", expected="one for all steps",
            remedy="Recipe(table) for each table of recipe.tables")  # fmt: skip
    chosen = [recipe.bits.get(name, SiteBits()) for name in counts.names]
    bits = [map(width_of, pair) for pair in chosen]
    weights, activations = np.array([[full if b is None else b for b in pair] for pair in bits]).T
    stored = np.array([stored_width(pair.weight, full, extra_bits) for pair in chosen])
    return Widths(weights, activations, full, None if np.all(stored == weights) else stored)


def stored_width(entry: Any, full: int, extra_bits: int | None = None) -> Any:
    """Return the bits in memory of a number of a weight by its entry in a recipe; see `widths`."""
    is_anew = getattr(entry, "is_anew", False)
    if entry is None or (is_anew and extra_bits is None):
        return full
    return width_of(entry) + (extra_bits if is_anew else 0)


@checked(full=check_full)
def uniform(weight: int, activation: int, *, full: int = 32) -> Widths:
    """Return the same widths at every site [1]."""
    check_count("weight", weight, most=full)
    check_count("activation", activation, most=full)
    return Widths(np.array([weight]), np.array([activation]), full)


def weight_bytes(counts: Counts, w: Widths):
    """Return the bytes of the packed weights and their scales, each parameter once [..., S].

        M_l(b) = ceil(n_l b / 8) + 4 G_l [b < full]

    for n_l elements of b bits in memory with G_l scales, those of a recipe if `count` was given
    one. Survey, eq. 13, M(b) ~ b / 32, is the first term over that of float32. Equal to
    `quant.footprint(...).total` for integers with float32 scales.
    """
    codes = _bytes(counts.stored, w.held)
    has_scales = counts.scales * (counts.stored > 0) * SCALE_BYTES
    return codes + _where_quantized(w.weight, w.full, has_scales)


def activation_bytes(counts: Counts, w: Widths):
    """Return the bytes of the activations that a site reads [..., S], each operand at its width."""
    return _bytes(counts.activations, w.activation)


def output_bytes(counts: Counts, w: Widths):
    """Return the bytes of the results [S]: sums leave a site as real numbers."""
    return _bytes(counts.outputs, np.int64(w.full))


def traffic(counts: Counts, w: Widths):
    """Return the bytes that a site moves at least [..., S]: every operand read once, the result
    written once.

    The operations between the sites, which make codes of real numbers, are not counted.
    """
    w = _alike(w)
    reads = _bytes(counts.weights, w.held) + activation_bytes(counts, w)
    scales = _where_quantized(w.weight, w.full, counts.scales * SCALE_BYTES)
    outputs = like(output_bytes(counts, w), reads)
    return reads + scales + outputs


def bops(counts: Counts, w: Widths):
    """Return the bit-operations of a call [..., S]: the survey's C(b), eq. 14.

        C_l(b) = MACs_l b_w b_a            (both b_a for a product of activations)

    Van Baalen et al. 2020 (Bayesian Bits), section 4. Additions are left out.
    """
    products = bit_products(counts, w)
    return like(counts.macs, products) * products


def bit_products(counts: Counts, w: Widths):
    """Return b_w b_a of every product [..., S]: single-bit products in a multiplication."""
    w = _alike(w)
    return _left(counts, w) * w.activation


def working_set(counts: Counts, w: Widths):
    """Return the bytes of the largest site's activations and result [...]: least that is held."""
    reads = activation_bytes(counts, w)
    both = reads + like(output_bytes(counts, w), reads)
    return both.max(-1)


def other_elements(params, counts: Counts) -> int:
    """Return the number of parameters that are no site's weight: biases, gains, embeddings.

    Raises:
      ValueError: the sites' weights are more than the parameters: not of this network.
    """
    total = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))
    rest = total - int(np.sum(counts.stored))
    require(
        rest >= 0, "params", got=f"{total} parameters for sites that store {total - rest}",
        expected="the parameters that the sites were listed with",
        remedy="list the sites of this network",
    )  # fmt: skip
    return rest


@checked(other=FROM_0)
def model_bytes(counts: Counts, w: Widths, other: int = 0):
    """Return the bytes of the whole network [...]: packed weights, and `other` full elements."""
    return weight_bytes(counts, w).sum(-1) + other * w.full // 8


def operand_bits(counts: Counts, w: Widths):
    """Return the width of the wider operand of every product [..., S]: that of the machine."""
    w = _alike(w)
    left = _left(counts, w)
    return numpy_of(left).maximum(left, w.activation)


def _alike(w: Widths) -> Widths:
    """Return both widths as JAX floats if either is a JAX array."""
    if not isinstance(w.weight, jax.Array) and not isinstance(w.activation, jax.Array):
        return w
    dtype = np.promote_types(_float(w.weight), _float(w.activation))
    return jax.tree.map(lambda bits: jnp.asarray(bits, dtype), w)


def _left(counts: Counts, w: Widths):
    """Return the bits of the first operand [..., S]: the weight, else an activation."""
    return numpy_of(w.weight).where(counts.weights > 0, w.weight, w.activation)


def _bytes(elements, bits):
    """Return ceil(elements bits / 8), exact; without the ceiling for JAX bits."""
    if isinstance(bits, jax.Array):
        bits = jnp.asarray(bits, _float(bits))
        return jnp.asarray(elements, bits.dtype) * bits / 8
    return -(-np.asarray(elements) * bits // 8)


def _where_quantized(bits, full: int, count):
    if isinstance(bits, jax.Array):
        return jnp.where(bits < full, jnp.asarray(count, _float(bits)), 0)
    return np.where(np.asarray(bits) < full, count, 0)


def _float(bits):
    """Return the dtype of costs at these bits: theirs if real, else the default float."""
    bits = jnp.asarray(bits)
    return bits.dtype if jnp.issubdtype(bits.dtype, jnp.floating) else jnp.result_type(float)


def numpy_of(a) -> Any:
    """Return the namespace that computes with an array: that of JAX, or NumPy."""
    return jnp if isinstance(a, jax.Array) else np


def like(values, other) -> Any:
    """Return the values as `other` is: JAX floats of its dtype, or NumPy."""
    return jnp.asarray(values, other.dtype) if isinstance(other, jax.Array) else np.asarray(values)
