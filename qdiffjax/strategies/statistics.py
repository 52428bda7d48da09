"""What cures measure at the sites of a network: products as matrices, their moments and ranges."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax._checks import require
from qdiffjax._typing import Array, float_dtype
from qdiffjax.precision.around import Around
from qdiffjax.sites import Site, match, transform
from qdiffjax.sites.products import Conv, Dot
from qdiffjax.strategies.drafts import Draft, States


def has_matrix(site: Site) -> bool:
    """Return whether a site is a product of a matrix of activations and one of weights."""
    if site.weight is None or site.product is None:
        return False
    if isinstance(site.product, Dot):
        return not site.product.batch[0]
    return site.product.feature_groups == site.product.batch_groups == 1


def with_matrices(
    draft: Draft, globs: Sequence[str] | None, *, either: bool = False
) -> tuple[str, ...]:
    """Return the sites whose weight the recipe rounds and that are matrix products.

    Args:
      draft: its recipe and its sites.
      globs: of sites, all of which have to be such products; None takes those that are.
      either: whether sites with a weight of which activations alone are rounded count too.

    Raises:
      ValueError: a glob that names another site, or nothing is left.
    """
    rounded = draft.rounds_product() if either else draft.rounds_weight()
    if globs is not None:
        require(not isinstance(globs, str), "sites", got=repr(globs), expected="a tuple of globs",
                remedy=f"({globs!r},)", error=TypeError)  # fmt: skip
        named = match(draft.calibration.sites, globs)
        rounded = tuple(name for name in rounded if name in named)
        for name in rounded:
            require(has_matrix(draft.sites[name]), name, got="products in groups or batches",
                    expected="one matrix of weights",
                    remedy=f"leave it out: sites=(..., '!{name}')")  # fmt: skip
    chosen = tuple(name for name in rounded if has_matrix(draft.sites[name]))
    what = "which are" if either else "whose weights are"
    require(chosen, "sites", got=f"none of {len(rounded)} {what} rounded",
            expected="a matrix product with a weight that the recipe rounds",
            remedy="a recipe such as W4A8")  # fmt: skip
    return chosen


def weight_matrix(site: Site, w: Array) -> Array:
    """Return a weight operand as [K, M]: what is summed over, and the output channels."""
    order, num = _weight_order(site)
    moved = w.transpose(order)
    return moved.reshape(math.prod(moved.shape[:num]), -1)


def weight_operand(site: Site, matrix: Array) -> Array:
    """Return a matrix [K, M] as a weight operand: the inverse of `weight_matrix`."""
    assert site.weight is not None
    order, _ = _weight_order(site)
    shape = tuple(site.shapes[site.weight][axis] for axis in order)
    return matrix.reshape(shape).transpose([order.index(axis) for axis in range(len(order))])


def activation_matrix(site: Site, x: Array) -> Array:
    """Return the activation operand of a site as [rows, K], so that its product is a matrix's.

    Rows of a convolution are the patches under its kernel.
    """
    assert site.weight is not None
    (index,) = site.activations
    product: Any = site.product
    if isinstance(product, Dot):
        contract = product.contract[index]
        free = product.free(index, x.ndim)
        moved = x.transpose((*free, *contract))
        return moved.reshape(-1, math.prod(moved.shape[len(free) :]))
    assert isinstance(product, Conv)
    window = tuple(site.shapes[site.weight][axis] for axis in product.rhs[2:])
    dims = jax.lax.ConvDimensionNumbers(product.lhs, product.rhs, product.lhs)
    patches = jax.lax.conv_general_dilated_patches(
        x, window, product.strides, product.padding, product.lhs_dilation, product.rhs_dilation,
        dims, precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    moved = jnp.moveaxis(patches, product.lhs[1], -1)
    return moved.reshape(-1, moved.shape[-1])


def _weight_order(site: Site) -> tuple[tuple[int, ...], int]:
    """Return the axes of the weight operand, those summed over first, and how many those are."""
    assert site.weight is not None
    product: Any = site.product
    if isinstance(product, Dot):
        contract = product.contract[site.weight]
        return (*contract, *product.free(site.weight, len(site.shapes[site.weight]))), len(contract)
    out, channels, *space = product.rhs
    return (channels, *space, out), 1 + len(space)


def observed(
    draft: Draft,
    names: Sequence[str],
    stat_fn: Callable[[Site, Array], Any],
    *,
    by_call: bool,
    rounded: bool = False,
) -> dict[str, Any]:
    """Return stat_fn(site, x) of the activation operands of sites, in the basis of the draft.

    Along full-precision runs, at the states of the draft.

    Args:
      draft: the states, and the bases of its sites.
      names: of the sites, products with a weight.
      stat_fn: of one call's operand [*shape], a pytree of arrays.
      by_call: whether results keep an axis of calls [calls, ...]; else they are the mean over
        calls.
      rounded: whether operands are rounded as the recipe says, where that takes no memory.
    """
    inputs = draft.site_inputs() if rounded else {}
    arounds = {name: (draft.around.get(name, Around()),
                      draft.grids.get(name, getattr(inputs.get(name), "activations", ())))
               for name in names}  # fmt: skip
    denoiser = draft.denoiser
    cond = precision.condition(precision.Quantized(denoiser, {}), draft.states.x[0])

    @jax.jit
    def measure(params, states: States, arounds, cond):
        def one(x, t, call):
            def rule(site, op, operands, inputs):
                if inputs is None:
                    return op(*operands), None
                index = site.activations[0]
                axis = precision.group_axis(site, index)
                around, grids = inputs
                value = around.enter(operands[index], axis, call)
                if grids and grids[0] is not None:
                    fn = functools.partial(_rounded, site, index)
                    value = precision.at_call(fn, grids[0], call, value)
                return op(*operands), stat_fn(site, value.astype(float_dtype(value)))

            g = transform(denoiser.eps_fn, rule)
            return g(params, x, t, *cond, site_inputs=arounds)[1]

        if by_call:
            return jax.lax.map(lambda s: one(*s), tuple(states))
        first = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(one, *jax.tree.map(lambda a: a[0], tuple(states))),
        )
        total, _ = jax.lax.scan(
            lambda sums, s: (jax.tree.map(jnp.add, sums, one(*s)), None), first, tuple(states)
        )
        return jax.tree.map(lambda s: s / states.x.shape[0], total)

    return measure(denoiser.params, draft.states, arounds, cond)


def _rounded(site: Site, index: int, grid, x: Array) -> Array:
    if grid is None or grid.has_memory:
        return x
    return precision.round_activation(x, grid, axes=precision.token_axes(site, index),
                                      group_axis=precision.group_axis(site, index))  # fmt: skip


def grams(draft: Draft, names: Sequence[str]) -> dict[str, Array]:
    """Return E[x x^T] of the rows x that weights multiply, [K, K] by site.

    In their basis and rounded as the recipe says: the squared error of a product whose weight
    [K, M] changes by D is tr(D^T E[x x^T] D) a row, beside what the rounding of x adds. At four
    bits that noise is on the diagonal, and keeps roundings from leaning on small differences of
    inputs that are no more there.
    """

    def gram(site: Site, x: Array) -> Array:
        rows = activation_matrix(site, x)
        return jnp.matmul(rows.T, rows, precision="highest") / rows.shape[0]

    return observed(draft, names, gram, by_call=False, rounded=True)


def channel_maxima(draft: Draft, names: Sequence[str]) -> dict[str, Array]:
    """Return max |x| of every channel of an activation operand at each call [calls, channels]."""

    def largest(site: Site, x: Array) -> Array:
        axis = precision.group_axis(site, site.activations[0])
        return jnp.max(jnp.abs(x), tuple(a for a in range(x.ndim) if a != axis))

    return observed(draft, names, largest, by_call=True)
