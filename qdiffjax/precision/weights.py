"""Weights of a network: as its sites see them, and rounded once, outside every loop."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import EpsFn
from qdiffjax.precision.recipe import Recipe
from qdiffjax.quant import Format, IntFormat, absmax, fake_quant, keep_sums
from qdiffjax.quant.granularity import concrete_all
from qdiffjax.sites import Site, rules, transform


def output_channels(site: Site) -> tuple[int, ...]:
    """Scale shape of a weight with one scale for each output channel: the axes not summed over."""
    assert site.weight is not None
    shape, summed = site.shapes[site.weight], site.contract_axes[site.weight]
    return tuple(1 if axis in summed else n for axis, n in enumerate(shape))


def whole_tensor(site: Site) -> tuple[int, ...]:
    """Scale shape of a weight with a single scale."""
    assert site.weight is not None
    return (1,) * len(site.shapes[site.weight])


def weight_operands(eps_fn: EpsFn, params, *args) -> dict[str, jax.Array]:
    """Return the weight operand of every site that has one, as the site sees it, by name.

    `args` are those of eps_fn after the parameters: x, t and, if it takes them, conditions.
    """
    collect = transform(eps_fn, rules.collect_weights)
    return jax.jit(lambda p: collect(p, *args)[1])(params)


def simulated(site: Site, w, scale, zero_point, format: Format) -> jax.Array:
    """Round a weight to a grid and return it in real units: what the simulation multiplies."""
    return _fake_quant(w, scale, zero_point, _width_as_data(format))


def keep_channel_sums(site: Site, w, scale, zero_point, format: Format) -> jax.Array:
    """Move a weight to the grid such that the sum of each output channel stays, see `keep_sums`.

    What follows a SiLU or a softmax has a mean, so errors of a channel that add up are a bias of
    every sample and step. Formats other than integers are left to nearest.
    """
    if not isinstance(format, IntFormat) or (format.is_static and format.bits == 1):
        return w
    shape = tuple(map(max, scale.shape, output_channels(site)))
    return _keep_sums(w, scale, zero_point, _width_as_data(format), shape)


OPTIONS = (
    "round_fn",
    "calibrate_fn",
    "granularity",
    "format_fn",
    "adjust_fn",
)  # of `round_weights`


def round_weights(
    weights: dict[str, Any],
    sites: Sequence[Site],
    recipe: Recipe,
    round_fn: Callable = simulated,
    *,
    calibrate_fn: Callable = absmax,
    granularity: Callable[[Site], tuple[int, ...]] = output_channels,
    format_fn: Callable[[int], Format] = IntFormat,
    adjust_fn: Callable | None = None,
) -> dict[str, Any]:
    """Quantize the weights of a recipe once, outside every loop.

    Args:
      weights: from `weight_operands`.
      sites: the network's sites.
      recipe: which weights get how many bits.
      round_fn: (site, w, scale, zero_point, format) -> the weight that the rule of the site reads:
        `simulated`, or `codes.stored_codes`, whose real values are the same bit for bit.
      calibrate_fn: (w, format=, scale_shape=) -> (scale, zero_point), as `quant.absmax`.
      granularity: the shape of a site's weight scale; its shape is the granularity.
      format_fn: bits -> format, such as `lambda bits: E4M3FN` for a recipe of 8 bits.
      adjust_fn: (site, w, scale, zero_point, format) -> the numbers to round in place of w, as
        `keep_channel_sums`; None rounds w itself.

    Returns:
      What round_fn returns, by site.

    Raises:
      ValueError: a weight that is not finite; names the site.
    """
    rounded = {}
    for site in sites:
        bits = recipe.bits[site.name].weight if site.name in recipe.bits else None
        if bits is not None and site.name in weights:
            w, format = weights[site.name], format_fn(bits)
            require(
                concrete_all(jnp.isfinite, w), f"{site.name}, weight", got="NaN or infinity",
                expected="finite numbers", remedy="codes hold neither: mend the parameters",
            )  # fmt: skip
            grid = _grid(w, _width_as_data(format), granularity(site), calibrate_fn)
            if adjust_fn is not None:
                w = adjust_fn(site, w, *grid, format)
            rounded[site.name] = round_fn(site, w, *grid, format)
    return rounded


def _width_as_data(format: Format) -> Format:
    """Return the format with traced bits, so that widths share a program; one bit has no such."""
    if not isinstance(format, IntFormat) or not format.is_static or format.bits == 1:
        return format
    return dataclasses.replace(format, bits=np.asarray(format.bits, np.int32))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _grid(w, format: Format, scale_shape, calibrate_fn):
    return calibrate_fn(w, format=format, scale_shape=scale_shape)


@jax.jit
def _fake_quant(w, scale, zero_point, format: Format):
    return fake_quant(w, scale, zero_point, format=format)


@functools.partial(jax.jit, static_argnames="sum_shape")
def _keep_sums(w, scale, zero_point, format: IntFormat, sum_shape):
    return keep_sums(w, scale, zero_point, format=format, sum_shape=sum_shape)
