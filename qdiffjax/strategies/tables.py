"""Drafts as tables that `quantize` and `lower` take: every site's own format, grids as they are."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax._checks import check_type, require
from qdiffjax.precision import (
    OperandFormat,
    Quantized,
    Recipe,
    Series,
    SiteBits,
    keep_channel_sums,
)
from qdiffjax.precision.formats import BY_STEP, DYNAMIC, NEAREST, STATIC
from qdiffjax.precision.settings import EDGE_MARGIN, assign, mapped
from qdiffjax.quant import ActivationGrid
from qdiffjax.strategies.drafts import Draft, Grid


def explicit(draft: Draft) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of a draft as a table, and options with which it means the same."""
    options = dict(draft.options)
    named = {name: options.pop(name, None) for name in ("sites", "activations", "edge_margin")}
    chosen = assign(draft.calibration, draft.recipe, options, **named)
    in_words = isinstance(draft.recipe, str)
    if in_words and "round_fn" not in options:
        options = {"adjust_fn": keep_channel_sums} | options
    options["activations"] = named["activations"] or (DYNAMIC if in_words else STATIC)
    usual = EDGE_MARGIN if in_words and options["activations"] == STATIC else None
    if margin := named["edge_margin"] or usual:
        options["edge_margin"] = margin
    return chosen.recipe, options


def lower_draft(draft: Draft, **options) -> Quantized:
    """Return what `lower` makes of a draft: codes that multiply codes, as cures have decided them.

    Weights are stored on their own grids, learned ones too, and static clips of activations as
    they were found or learned, up to the last digit of a scale.

    Args:
      draft: of cures that leave the product alone: clips, roundings, training, sites left out.
      options: `path` of `precision.lower`.

    Raises:
      ValueError: another basis, a branch or a correction; what `lower` refuses.
    """
    check_type("draft", draft, Draft, remedy="improve(calibration, recipe, cures, steps, key)")
    require(not draft.around, ", ".join(list(draft.around)[:3]), got="a cure around the product",
            expected="roundings alone, which kernels multiply",
            remedy="simulate it by draft.quantized()")  # fmt: skip
    recipe, own = explicit(draft)
    calibration = draft.calibration
    if recipe.ranges is not None:
        calibration = dataclasses.replace(calibration, ranges=recipe.ranges)
    # Widened here, since ranges that cures have found are to stay.
    calibration = calibration.widened(own.pop("edge_margin", 1.0))
    weights, ranges = dict(calibration.weights), dict(calibration.ranges)
    # One object for a site, so that phases which round it alike have its codes in common.
    entries = {name: _on_grid(recipe.choices(name), grid)
               for name, grid in draft.weight_grids(draft.rounded).items()}  # fmt: skip

    def decided(table: dict[str, SiteBits]) -> dict[str, SiteBits]:
        found = {}
        for name, bits in table.items():
            if name in draft.plain:
                continue
            if name in entries and bits.weight is not None:
                weights[name] = draft.rounded[name]
                bits = bits._replace(weight=entries[name])
            if name in draft.grids and bits.activation is not None:
                entry, ranges[name] = _with_ends(draft.grids[name], ranges[name], bits.activation)
                bits = bits._replace(activation=entry)
            found[name] = bits
        return found

    recipe = dataclasses.replace(mapped(recipe, decided), ranges=None)
    calibration = dataclasses.replace(calibration, weights=weights, ranges=ranges)
    return precision.lower(calibration, recipe, **own, **options)


def _on_grid(choices: tuple[SiteBits, ...], grid: Grid) -> OperandFormat:
    """Return the entry of a weight that is on a grid already, of the choices of its site."""
    entry = next(bits.weight for bits in choices if bits.weight is not None)

    def found(w, *, format, scale_shape):
        return grid.scale, grid.zero_point

    granularity = entry.granularity if isinstance(entry, OperandFormat) else None
    return OperandFormat(grid.format, granularity, calibration=found, rounding=NEAREST)


def _with_ends(grids: tuple, ranges: tuple, entry: Any) -> tuple[Any, tuple]:
    """Return the entry of activations with static grids, and the ranges that these have."""
    ends, by_step = [], False
    for grid, before in zip(grids, ranges, strict=True):
        by_step |= isinstance(grid, Series)
        own = grid.values if isinstance(grid, Series) else grid
        if not isinstance(own, ActivationGrid) or own.scale is None:
            ends.append(before)
            continue
        scale = jnp.asarray(own.scale)
        zero = jnp.asarray(0 if own.zero_point is None else own.zero_point).astype(scale.dtype)
        pair = ((jnp.asarray(end).astype(scale.dtype) - zero) * scale
                for end in (own.format.low, own.format.high))  # fmt: skip
        ends.append(tuple(jnp.broadcast_to(end, np.shape(before[0])) for end in pair))
        if not isinstance(entry, OperandFormat):
            bits = int(np.max(np.asarray(own.format.bits)))
            entry = OperandFormat(dataclasses.replace(own.format, bits=bits))
        entry = dataclasses.replace(entry, scales=BY_STEP if by_step else STATIC)
    return entry, tuple(ends)
