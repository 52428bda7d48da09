"""A cure of skip concatenations: each part has a grid of its own, of activations and of weights."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.precision.around import Around, Diagonal
from qdiffjax.quant import ActivationGrid, activation_grid
from qdiffjax.sites import Site, match
from qdiffjax.strategies.drafts import CLIP, Cure, Draft
from qdiffjax.strategies.statistics import observed


def split_skips(*, sites: Sequence[str] | None = None) -> Cure:
    """Return the cure that rounds the parts of a concatenation apart where a product reads it.

        Q(x) = [Q_1(x_1), Q_2(x_2)],   Q(w) = [Q_1(w_1), Q_2(w_2)]
        Q(x) Q(w) = Q_1(x_1) Q_1(w_1) + Q_2(x_2) Q_2(w_2)

    for x = [x_1, x_2] along the channels that are summed. Q-Diffusion (Li et al. 2023, section on
    shortcut-splitting quantization): what a UNet's skip brings and what comes from below differ in
    range, and so do their weights. Dynamic grids are those of each part at hand; static ones cover
    the range of each part at the states of the draft. Weights round as the recipe and other cures
    say, each part by itself. Costs a scale more for each output channel and part, and, for static
    grids, a pass over the states.

    Args:
      sites: globs; None takes every product that reads a concatenation of branches and is rounded.

    Raises (when applied):
      ValueError: no such product; channels in another order or mixed by another cure; activations
        that are not rounded to integers or floats by token, sample or tensor.
    """

    def parts_of(draft: Draft) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple]]:
        """Return the lengths of the parts, and the grids of activations that are rounded."""
        inputs = draft.site_inputs()
        chosen = draft.sites if sites is None else match(draft.calibration.sites, sites)
        pieces = {name: site.pieces for name, site in draft.sites.items()
                  if site.pieces and name in inputs and name in chosen}  # fmt: skip
        require(pieces, "split skips", got="no product that reads a concatenation",
                expected="one that is rounded, such as the shortcuts of a UNet",
                remedy="leave the cure out")  # fmt: skip
        grids = {name: draft.grids.get(name, inputs[name].activations) for name in pieces}
        grids = {name: each for name, each in grids.items() if any(each)}
        for name, (grid,) in grids.items():
            is_split = isinstance(grid, ActivationGrid) and not grid.group_size
            is_split = is_split and not hasattr(grid.format, "block_size")
            require(is_split, name, got="activations in groups, blocks or by step",
                    expected="one grid for a token, a sample or the tensor",
                    remedy="leave groups and steps out of the recipe")  # fmt: skip
        return pieces, grids

    def apply(draft: Draft) -> Draft:
        pieces, grids = parts_of(draft)
        for name in pieces:
            bases = draft.around.get(name, Around()).bases
            require(all(isinstance(b, Diagonal) for b in bases), name,
                    got="channels that another cure mixes or moves",
                    expected="those of the network",
                    remedy="leave the site out of one of the two")  # fmt: skip
        static = [name for name, (grid,) in grids.items() if grid.scale is not None]
        ranges = observed(draft, static, _channel_range, by_call=True) if static else {}
        split = dict(draft.grids)
        for name, (grid,) in grids.items():
            site = draft.sites[name]
            split[name] = (
                _static(site, grid, *ranges[name]) if name in ranges
                else dataclasses.replace(grid, pieces=site.pieces),
            )  # fmt: skip
        options = {**draft.options, "pieces": pieces}
        done = dataclasses.replace(draft, options=options, grids=split)
        return done.billed(evaluations=draft.states.num if static else 0)

    return Cure("skips split", CLIP, apply, parts_of)


def _channel_range(site: Site, x: Array) -> tuple[Array, Array]:
    """Return the least and largest number of every channel of an operand, [channels] each."""
    axis = precision.group_axis(site, site.activations[0])
    others = tuple(a for a in range(x.ndim) if a != axis)
    return jnp.min(x, others), jnp.max(x, others)


def _static(site: Site, grid: ActivationGrid, low: Array, high: Array) -> ActivationGrid:
    """Return a grid with a scale for each channel, the same within a part.

    low, high: of every channel at every state [calls, channels].
    """
    index = site.activations[0]
    axis, rank = precision.group_axis(site, index), len(site.shapes[index])
    assert axis is not None
    ends = [sum(site.pieces[:place]) for place in range(len(site.pieces) + 1)]
    spread = [
        tuple(jnp.full(stop - start, end) for end in
              (jnp.min(low[:, start:stop]), jnp.max(high[:, start:stop])))
        for start, stop in itertools.pairwise(ends)
    ]  # fmt: skip
    shape = [1] * rank
    shape[axis] = -1
    lows, highs = (jnp.concatenate(end).reshape(shape) for end in zip(*spread, strict=True))
    made = activation_grid(lows, highs, grid.format)
    return dataclasses.replace(grid, scale=made.scale, zero_point=made.zero_point)
