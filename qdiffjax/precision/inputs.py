"""What the rule of every site is given under a recipe."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_names, require
from qdiffjax._typing import Key
from qdiffjax.precision.formats import (
    CHANNEL,
    DIFFERENCE,
    NEAREST,
    SHAPED,
    STATIC,
    STOCHASTIC,
    TENSOR,
    TOKEN,
    OperandFormat,
)
from qdiffjax.precision.ranges import Ranges, over_ranges, over_steps
from qdiffjax.precision.recipe import Recipe
from qdiffjax.precision.rules import Series, SiteQuant, Switch
from qdiffjax.precision.settings import Assignment, static_grid
from qdiffjax.precision.shaping import site_key
from qdiffjax.quant import ActivationGrid, BlockFormat, activation_grid

GridFn = Callable[[Any, Any, int], ActivationGrid]


def inputs_of(
    chosen: Assignment,
    weights_of: Callable[[Recipe], dict[str, Any]],
    grid_fn: Callable[[Any, Any, int], ActivationGrid | None],
) -> dict[str, SiteQuant]:
    """Return the inputs of every site under a recipe, those that change by phase as a `Switch`."""
    ranges = chosen.calibration.ranges
    key = chosen.rounding.get("key")
    own = Recipe(chosen.recipe.bits)
    base_weights = weights_of(own)

    def weights(table: Recipe) -> dict[str, Any]:
        """Return the weights of a phase, those that it rounds like all others being the same."""
        same = {name for name, bits in table.bits.items()
                if name in own.bits and _is_same(bits.weight, own.bits[name].weight)}  # fmt: skip
        rest = Recipe({name: bits for name, bits in table.bits.items() if name not in same})
        shared = {name: w for name, w in base_weights.items() if name in same}
        return shared | (weights_of(rest) if rest.bits else {})

    tables = [
        site_inputs(table, weights(table), over_steps(ranges), grid_fn, by_step=ranges, key=key)
        for table in map(Recipe, chosen.recipe.tables)
    ]
    if len(tables) == 1:
        return tables[0]
    which = chosen.recipe.which(num_steps(ranges))
    base, *phases = tables
    plain = SiteQuant()
    return {
        name: switched([base.get(name, plain),
                        *(phase.get(name, base.get(name, plain)) for phase in phases)], which)
        for name in chosen.recipe.names
    }  # fmt: skip


def _is_same(entry: Any, other: Any) -> bool:
    """Return whether two entries of a recipe are known to be equal; traced widths are not."""
    return entry is other or bool(
        isinstance(entry, int | OperandFormat) and type(entry) is type(other) and entry == other
    )


def num_steps(ranges: Ranges) -> int:
    """Return how many calls the sampler had whose ranges these are.

    Raises:
      ValueError: ranges of all steps together.
    """
    ends = jax.tree.leaves(ranges)
    require(bool(ends) and jnp.ndim(ends[0]) == 1, "ranges", got="one for all steps",
            expected="one for each call of the sampler, for a recipe by step",
            remedy="calibrate(denoiser, steps, key)")  # fmt: skip
    return len(ends[0])


def as_data(grid_fn: GridFn) -> GridFn:
    """Return the function whose grids have their bits as data, so that widths share a program."""
    return lambda low, high, bits: grid_fn(low, high, bits).with_bits_as_data()


simulated_grid = as_data(static_grid)


def site_inputs(
    recipe: Recipe,
    weights: dict[str, Any],
    ranges: Ranges,
    grid_fn: Callable[[Any, Any, int], ActivationGrid | None] = simulated_grid,
    *,
    by_step: Ranges | None = None,
    key: Key | None = None,
) -> dict[str, SiteQuant]:
    """Return the inputs of every site under a recipe without phases.

    Args:
      recipe: widths or formats by site.
      weights: quantized weights by site, from `round_weights`.
      ranges: static ranges from `over_steps`; with a leading step axis (from `observe_ranges`)
        the result is for the sampler's `per_call`.
      grid_fn: (low, high, bits) -> how an activation of so many bits is rounded; an
        `OperandFormat` says so itself.
      by_step: ranges with a step axis, for formats whose scales are by step.
      key: of stochastic rounding, from which every operand of every site has its own; None is
        key 0.
    """
    key = jax.random.key(0) if key is None else key
    inputs = {}
    for name, (_, entry) in recipe.bits.items():
        grids: list[Any] = []
        if entry is not None:
            check_names("ranges", (name,), ranges)
            grids = [
                format_grid(entry, pair, every, site_key(jax.random.fold_in(key, place), name))
                if isinstance(entry, OperandFormat) else grid_fn(pair[0], pair[1], entry)
                for place, (pair, every) in enumerate(
                    zip(ranges[name], (by_step or ranges)[name], strict=True)
                )
            ]  # fmt: skip
        inputs[name] = SiteQuant(weights.get(name), tuple(grids))
    return inputs


def format_grid(entry: OperandFormat, pair, every, key: Key) -> ActivationGrid | Series:
    """Return how an activation is rounded as an `OperandFormat` says.

    Args:
      entry: with scales, dynamic or static.
      pair: (low, high) of all steps.
      every: (low [N], high [N]) of each.
      key: of stochastic rounding, which takes a part of it at every call.
    """
    require(entry.granularity != CHANNEL and entry.calibration is None, "activation",
            got=str(entry), expected=f"{TENSOR!r}, {TOKEN!r} or the size of a group, and the range "
            "of the calibration", remedy="channels and calibrations are of weights")  # fmt: skip
    known = (NEAREST, STOCHASTIC, SHAPED, DIFFERENCE)
    require(entry.rounding in (None, *known), "activation", got=str(entry),
            expected=f"one of {known}",
            remedy="sums and other sequences are of weights")  # fmt: skip
    key = key if entry.rounding == STOCHASTIC else None  # type: ignore[assignment]
    memory: dict[str, Any] = {
        "feedback": entry.rounding == SHAPED,
        "difference": entry.rounding == DIFFERENCE,
    }
    if isinstance(entry.format, BlockFormat) or not entry.is_static:
        sizes: dict[Any, int | None] = {None: None, TOKEN: None, TENSOR: 0}
        size = sizes.get(entry.granularity, entry.granularity)
        return ActivationGrid(entry.format, key=key, group_size=size, **memory)
    if entry.scales == STATIC:
        low, high = pair
    else:
        low, high = over_ranges(every, entry.num_ranges(num_steps({"": (every,)})))
    grid = activation_grid(low, high, entry.format)
    require(entry.rounding != DIFFERENCE, "activation", got=str(entry),
            expected="dynamic scales: the range of a difference is not that of calibration",
            remedy="leave the scales out")  # fmt: skip
    grid = dataclasses.replace(grid, key=key, **memory)
    if entry.scales == STATIC:
        return grid
    keys = None if key is None else jax.random.split(key, len(low))
    return Series(dataclasses.replace(grid, key=keys))


def switched(inputs: Sequence[SiteQuant], which) -> SiteQuant:
    """Return the inputs of a site that has these by turns: `which` of them at each call."""

    def one(operands):
        first = operands[0]
        return first if all(o is first for o in operands) else Switch(tuple(operands), which)

    num = max(len(each.activations) for each in inputs)
    padded = [(*each.activations, *(None,) * (num - len(each.activations))) for each in inputs]
    activations = tuple(one(grids) for grids in zip(*padded, strict=True))
    return SiteQuant(one([each.weight for each in inputs]), activations)
