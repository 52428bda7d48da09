"""The rule that quantizes: what it does at a site, and what a site is given for it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.quant import ActivationGrid, RoundingSequence, rounding
from qdiffjax.sites import Site


class SiteQuant(NamedTuple):
    """Inputs of `quantize_site` at one site.

    weight: the quantized weight operand, in real units, a `RoundingSequence` of it, or None to
    leave it alone; activations: an `ActivationGrid` or None for each activation operand, in order;
    () for none; call: number of the sampler's network call, which a sequence needs.
    """

    weight: Any = None
    activations: tuple = ()
    call: Any = None


def quantize_site(site: Site, op: Callable, operands: tuple, inputs: SiteQuant | None):
    """Run the operation on quantized operands; inputs None leaves the site alone.

        y = op(Q(activation), Q(weight))

    Survey, section 2.3 and eq. 11: Q(theta), Q(h_t), and at the sites `input` and `output`
    Q(x_t) and Q(eps). The weight was quantized before the loop over steps, see `quantize`.
    """
    if inputs is None:
        return op(*operands), None
    values = list(operands)
    if site.weight is not None and inputs.weight is not None:
        weight = inputs.weight
        if isinstance(weight, RoundingSequence):
            weight = weight.at(inputs.call)
        values[site.weight] = weight.astype(values[site.weight].dtype)
    for index, grid in zip(site.activations, inputs.activations, strict=False):
        if grid is not None:
            values[index] = round_activation(values[index], grid, axes=token_axes(site, index))
    return op(*values), None


def token_axes(site: Site, index: int) -> tuple[int, ...]:
    """Return the axes of an operand that share a dynamic grid.

    At an edge those of one sample, so that samples do not mix; at a mark, which may have no axis of
    samples, all.
    """
    rank = len(site.shapes[index])
    first = int(site.kind != "mark" and rank > 1)
    return site.contract_axes[index] or tuple(range(first, rank))


def round_activation(
    x, grid: ActivationGrid, round_fn: rounding.RoundFn | None = None, *, axes: tuple[int, ...] = ()
):
    """Fake-quantize an activation operand [*shape], with the straight-through derivative.

    A `round_fn` takes the place of the rounding that the grid asks for; `axes` share a dynamic
    grid.
    """
    if round_fn is None and grid.key is not None:
        uniform = jax.random.uniform(grid.key, x.shape, jnp.float32)
        round_fn = functools.partial(rounding.stochastic, uniform=uniform)
    return grid.round(x, axes, round_fn or rounding.nearest_even)
