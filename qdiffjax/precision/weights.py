"""Weights of a network: as its sites see them, and rounded once, outside every loop."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import EpsFn, Key
from qdiffjax.precision.formats import (
    CHANNEL,
    DIFFERENCE,
    FULL_BITS,
    NEAREST,
    SEQUENCES,
    STOCHASTIC,
    SUMS,
    TENSOR,
    OperandFormat,
    rule_for,
)
from qdiffjax.precision.recipe import Recipe, SiteBits
from qdiffjax.precision.row_codes import RowCodes
from qdiffjax.precision.rules import group_axis
from qdiffjax.precision.shaping import shaped, stochastic_weights
from qdiffjax.quant import (
    AlternatingCodes,
    BlockFormat,
    Format,
    IntFormat,
    QTensor,
    RoundingSequence,
    absmax,
    block_scale,
    fake_quant,
    keep_sums,
)
from qdiffjax.quant.granularity import concrete_all
from qdiffjax.quant.grids import grouped, is_affine
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


def grid_numbers(site: Site, entry: int | OperandFormat | None) -> int:
    """Return how many numbers the grid of a weight has under an entry of a recipe.

    A scale for each output channel, for the tensor, or for each group of neighbours within an
    output channel, and as many zero points where the grid is affine. None in full precision, and
    none beside those that a block format has in its bits.
    """
    if entry is None or isinstance(format := getattr(entry, "format", None), BlockFormat):
        return 0
    channels, size = math.prod(output_channels(site)), getattr(entry, "granularity", None)
    scales = 1 if size == TENSOR else channels
    if isinstance(size, int):
        scales = channels * -(-_num_elements(site) // (channels * size))
    return scales * (2 if format is not None and is_affine(format) else 1)


def weight_bits(site: Site, entry: int | OperandFormat | None) -> float:
    """Return the bits that the weight of a site takes under an entry of a recipe.

        b n + 32 G,   n numbers of b bits on a grid of G numbers, see `grid_numbers`

    A weight in full precision, or rounded anew at every call, is stored as itself: b = 32.
    """
    stored: Any = FULL_BITS if entry is None else getattr(entry, "stored_bits", entry)
    bits = float(stored)
    return bits * _num_elements(site) + FULL_BITS * grid_numbers(site, entry)


def _num_elements(site: Site) -> int:
    assert site.weight is not None
    return math.prod(site.shapes[site.weight])


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
    channels = output_channels(site)
    if len(scale.shape) != len(channels):  # rows of groups, see `_rows`
        channels = (*w.shape[: w.ndim - 2], 1, 1)
    shape = tuple(map(max, scale.shape, channels))
    return _keep_sums(w, scale, zero_point, _width_as_data(format), shape)


OPTIONS = (
    "round_fn",
    "calibrate_fn",
    "granularity",
    "format_fn",
    "adjust_fn",
    "key",
    "pieces",
)  # of `round_weights`


def round_weights(
    weights: dict[str, Any],
    sites: Sequence[Site],
    recipe: Recipe,
    round_fn: Callable = simulated,
    *,
    calibrate_fn: Callable | None = None,
    granularity: Callable[[Site], tuple[int, ...]] = output_channels,
    format_fn: Callable[[int], Format] = IntFormat,
    adjust_fn: Callable | None = None,
    key: Key | None = None,
    pieces: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """Quantize the weights of a recipe once, outside every loop.

    Args:
      weights: from `weight_operands`.
      sites: the network's sites.
      recipe: which weights get how many bits, or which `OperandFormat`, at the steps that none of
        its phases names.
      round_fn: (site, w, scale, zero_point, format) -> the weight that the rule of the site reads:
        `simulated`, or `codes.stored_codes`, whose real values are the same bit for bit.
      calibrate_fn: (w, format=, scale_shape=) -> (scale, zero_point), of all weights whose format
        says no other and is no block format; None is `quant.absmax`, `quant.minmax` of affine ones.
      granularity: the shape of a site's weight scale; its shape is the granularity, where the
        format says no other.
      format_fn: bits -> format, such as `lambda bits: E4M3FN` for a recipe of 8 bits.
      adjust_fn: (site, w, scale, zero_point, format) -> the numbers to round in place of w, as
        `keep_channel_sums`; None rounds w itself. What an `OperandFormat` says comes before these.
      key: of the phases and random bits of roundings that an `OperandFormat` asks for; None is
        key 0.
      pieces: by site, lengths of neighbouring channels of the input that are rounded apart.

    Returns:
      What round_fn returns, by site; a tuple of that for each piece where it is no array.

    Raises:
      ValueError: a weight that was never prepared, is of integers or not finite, or a format that
        it cannot take; names the site.
    """

    def one(site: Site, w, entry):
        if isinstance(entry, OperandFormat):
            adjust = adjust_fn if entry.rounding is None else None
            if entry.rounding == SUMS:
                adjust = keep_channel_sums
            return _round_entry(site, w, entry, _rounding_of(entry, round_fn, key), adjust,
                                calibrate_fn, granularity)  # fmt: skip
        format = format_fn(entry)
        grid = _grid(w, _width_as_data(format), granularity(site), calibrate_fn or absmax)
        if adjust_fn is not None:
            w = adjust_fn(site, w, *grid, format)
        return round_fn(site, w, *grid, format)

    rounded = {}
    for site in sites:
        entry = recipe.bits.get(site.name, SiteBits()).weight
        if entry is None or site.weight is None:
            continue
        require(site.name in weights, f"{site.name}, weight", got="none that was prepared",
                expected="the weight of every site whose recipe rounds it",
                remedy="calibrate(denoiser, steps, key) prepares them")  # fmt: skip
        w = weights[site.name]
        require(jnp.issubdtype(w.dtype, jnp.floating), f"{site.name}, weight", got=str(w.dtype),
                expected="real floating numbers",
                remedy="cast the network's parameters, such as a.astype(jnp.float32)")  # fmt: skip
        require(
            concrete_all(jnp.isfinite, w), f"{site.name}, weight", got="NaN or infinity",
            expected="finite numbers", remedy="codes hold neither: mend the parameters",
        )  # fmt: skip
        if lengths := (pieces or {}).get(site.name):
            rounded[site.name] = _apart(site, w, entry, one, lengths)
        else:
            rounded[site.name] = one(site, w, entry)
    return rounded


def _apart(site: Site, w, entry, round_one: Callable, lengths: tuple[int, ...]):
    """Return a weight whose ranges of input channels are rounded as weights of their own."""
    assert site.weight is not None
    axis = group_axis(site, site.weight)
    require(axis is not None and sum(lengths) == w.shape[axis], f"{site.name}, pieces",
            got=str(lengths), expected="lengths of all channels that are summed",
            remedy="those of `site.pieces`")  # fmt: skip
    assert axis is not None
    ends = [sum(lengths[: place + 1]) for place in range(len(lengths) - 1)]
    done = []
    for part in jnp.split(w, ends, axis):
        shapes = tuple(part.shape if i == site.weight else shape
                       for i, shape in enumerate(site.shapes))  # fmt: skip
        done.append(round_one(dataclasses.replace(site, shapes=shapes), part, entry))
    require(not isinstance(done[0], RoundingSequence | QTensor), f"{site.name}, pieces",
            got="codes, or a weight rounded anew at every call",
            expected="one rounding, simulated",
            remedy="use `quantize`, without 'shaped'")  # fmt: skip
    return jnp.concatenate(done, axis) if isinstance(done[0], jax.Array) else tuple(done)


def _rounding_of(entry: OperandFormat, round_fn: Callable, key: Key | None) -> Callable:
    """Return what rounds a weight as its entry says."""
    if entry.rounding in (None, NEAREST, SUMS):
        return round_fn
    require(entry.rounding != DIFFERENCE, "weight", got=str(entry),
            expected="a weight, which does not change from call to call",
            remedy="differences are of activations: A4 difference")  # fmt: skip
    require(round_fn is simulated, "rounding", got=f"{entry.rounding!r} in real low precision",
            expected="codes that stay from call to call: nearest or sums",
            remedy="simulate it by `quantize`")  # fmt: skip
    key = jax.random.key(0) if key is None else key
    if entry.rounding == STOCHASTIC:
        return stochastic_weights(key)
    return shaped(key, SEQUENCES[entry.rounding])


def _round_entry(site: Site, w, entry: OperandFormat, round_fn: Callable, adjust_fn, calibrate_fn,
                 granularity):  # fmt: skip
    """Round a weight as an `OperandFormat` says, and as the options do where it says nothing."""
    format: Any = entry.format
    size: Any = entry.granularity
    is_block = isinstance(format, BlockFormat)
    element = format.element if is_block else format
    axis, back = None, None
    order: tuple[int, ...] = ()
    if is_block or isinstance(size, int):
        size = format.block_size if is_block else size
        shape, axis = _groups(site, size)
        if shape is None:
            order = _row_axes(site)
            w, back = grouped(w, size, order, None)
            shape, axis = (*w.shape[:-1], 1), w.ndim - 1
    else:
        require(size in (None, TENSOR, CHANNEL), f"{site.name}, weight", got=repr(size),
                expected=f"{TENSOR!r}, {CHANNEL!r} or the size of a group",
                remedy="tokens are rows of activations")  # fmt: skip
        shape = {None: granularity, TENSOR: whole_tensor, CHANNEL: output_channels}[size](site)
    if is_block:
        grid = _block_scale(w, format, axis), None
    else:
        rule = calibrate_fn if entry.calibration is None and calibrate_fn else entry.calibrate_fn
        grid = _grid(w, element, shape, rule_for(rule, element))
    if adjust_fn is not None:
        w = adjust_fn(site, w, *grid, element)
    rounded = round_fn(site, w, *grid, element)
    if back is None:
        return rounded
    if isinstance(rounded, RoundingSequence):
        return rounded.mapped(back)
    if isinstance(rounded, QTensor | AlternatingCodes):
        return RowCodes(rounded, site.shapes[site.weight or 0], order)
    require(isinstance(rounded, jax.Array), f"{site.name}, weight",
            got=f"groups of {size} that end inside of the axes that are summed",
            expected="groups that divide the only axis that is summed, for codes and for cures "
            "that round weights",
            remedy=f"a line of its own in the recipe: {site.name}: W4A8")  # fmt: skip
    return back(rounded)


def _groups(site: Site, size: int) -> tuple[tuple[int, ...] | None, int | None]:
    """Return the scale shape of groups along what is summed, None if no such, and their axis."""
    assert site.weight is not None
    shape, summed = site.shapes[site.weight], site.contract_axes[site.weight]
    axis = group_axis(site, site.weight)
    if axis is None or len(summed) != 1 or shape[axis] % size:
        return None, axis
    return tuple(n // size if a == axis else n for a, n in enumerate(shape)), axis


def _row_axes(site: Site) -> tuple[int, ...]:
    """Return the axes that groups of neighbours among all numbers of an output channel run over.

    In the order in which kernels read them: channels of the input next to each other, then space.
    """
    assert site.weight is not None
    axis, summed = group_axis(site, site.weight), site.contract_axes[site.weight]
    return tuple(a for a in summed if a != axis) + (() if axis is None else (axis,))


def _width_as_data(format: Format) -> Format:
    """Return the format with traced bits, so that widths share a program; one bit has no such."""
    if not isinstance(format, IntFormat) or not format.is_static or format.bits == 1:
        return format
    return dataclasses.replace(format, bits=np.asarray(format.bits, np.int32))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _grid(w, format: Format, scale_shape, calibrate_fn):
    return calibrate_fn(w, format=format, scale_shape=scale_shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _block_scale(w, format: BlockFormat, axis: int):
    return block_scale(w, format, axis=axis)


@jax.jit
def _fake_quant(w, scale, zero_point, format: Format):
    return fake_quant(w, scale, zero_point, format=format)


@functools.partial(jax.jit, static_argnames="sum_shape")
def _keep_sums(w, scale, zero_point, format: IntFormat, sum_shape):
    return keep_sums(w, scale, zero_point, format=format, sum_shape=sum_shape)
