"""What training may change of a quantized denoiser: numbers without a unit, which start at zero.

    w = w_0 + scale_0 u            weights, in steps of their grid: straight-through
    w = w_0 + mean scale_0 A B     the same of low rank, merged before it is rounded
    scale = scale_0 exp(s)         of weights (LSQ) and of static activations (LSQ+, PACT)
    zero = zero_0 + z              of affine grids, rounded straight-through (LSQ+)
    levels = levels_0 + l          of codebooks, in units of the scale

One learning rate then serves all of them in any network: an update of Adam is about so many steps
of a grid, or such a share of a scale.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import quant
from qdiffjax._checks import check_names, require
from qdiffjax._typing import Array, float_dtype
from qdiffjax.precision import Quantized, Series
from qdiffjax.precision.shaping import site_key
from qdiffjax.quant import ActivationGrid, CodebookFormat, IntFormat, expand
from qdiffjax.sites import Site, match
from qdiffjax.strategies.drafts import Draft, Grid
from qdiffjax.strategies.statistics import has_matrix, weight_matrix, weight_operand
from qdiffjax.strategies.weights import single_grids

WEIGHTS, SCALES, ACTIVATIONS, LEVELS = "weights", "scales", "activations", "levels"
LEARNED = (WEIGHTS, SCALES, ACTIVATIONS, LEVELS)
LSQ, PACT = "lsq", "pact"
MARGIN = 0.49  # of a step around what a weight rounds to, within which training starts
Values = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PactGrid(ActivationGrid):
    """A grid from zero to a clip whose gradient is that of the clip alone, see `fake_quant_pact`.

    Numbers are those of the grid that it was: scale = clip / qmax.
    """

    def round(self, x, axes, round_fn=None, group_axis=None):
        """Return x [*shape] rounded to the grid, with PACT's derivative."""
        scale, _ = self.parameters(x, axes)
        high = jnp.asarray(self.format.high).astype(scale.dtype)
        return quant.fake_quant_pact(x, scale * high, format=self.format)


class Start(NamedTuple):
    """Where training starts.

    q: the denoiser under its recipe and cures; grids: by site, the weights that are trained, with
    numbers that round to what q has there, and their grids.
    """

    q: Quantized
    grids: dict[str, Grid]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What of a denoiser is learned.

    Attributes:
      sites: where.
      learn: some of `LEARNED`.
      rank: of what is added to each weight; None changes the weight itself.
      clip: LSQ, or PACT for static grids from zero.
    """

    sites: dict[str, Site]
    learn: tuple[str, ...]
    rank: int | None
    clip: str

    def first(self, start: Start, key) -> Values:
        """Return the values to begin with: what is rounded is then what `start` rounds to."""
        grids = start.grids
        values: Values = {}
        if WEIGHTS in self.learn:
            values[WEIGHTS] = {name: self._change(name, grid, key) for name, grid in grids.items()}
        if SCALES in self.learn:
            values[SCALES] = {name: _changes(grid.scale, grid.zero_point)
                              for name, grid in grids.items() if not _is_book(grid)}  # fmt: skip
        if LEVELS in self.learn:
            values[LEVELS] = {name: jnp.zeros(len(grid.format.values), grid.w.dtype)
                              for name, grid in grids.items() if _is_book(grid)}  # fmt: skip
        if ACTIVATIONS in self.learn:
            values[ACTIVATIONS] = {
                name: {str(place): _changes(*_static(grid))
                       for place, grid in enumerate(inputs.activations) if _static(grid)}
                for name, inputs in start.q.site_inputs.items() if name in self.sites
            }  # fmt: skip
        return {kind: own for kind, own in values.items() if jax.tree.leaves(own)}

    def _change(self, name: str, grid: Grid, key) -> Any:
        if self.rank is None:
            return jnp.zeros_like(grid.w)
        num, out = weight_matrix(self.sites[name], grid.w).shape
        left = jax.random.normal(site_key(key, name), (num, self.rank), grid.w.dtype)
        return left / self.rank**0.5, jnp.zeros((self.rank, out), grid.w.dtype)

    def applied(self, start: Start, values: Values) -> Quantized:
        """Return the denoiser with values; differentiable in them."""
        inputs = dict(start.q.site_inputs)
        for name, grid in start.grids.items():
            weight = self.weight(name, grid, values)
            inputs[name] = inputs[name]._replace(weight=weight)
        for name, changes in values.get(ACTIVATIONS, {}).items():
            grids = tuple(moved(grid, changes[str(place)], self.clip)
                          if str(place) in changes else grid
                          for place, grid in enumerate(inputs[name].activations))  # fmt: skip
            inputs[name] = inputs[name]._replace(activations=grids)
        return dataclasses.replace(start.q, site_inputs=inputs)

    def weight(self, name: str, grid: Grid, values: Values) -> Array:
        """Return a weight as it is rounded under values [*shape]."""
        w, scale, zero = grid.w, grid.scale.astype(grid.w.dtype), grid.zero_point
        change = values.get(WEIGHTS, {}).get(name)
        if self.rank is not None and change is not None:
            product = jnp.matmul(*change, precision="highest") * jnp.mean(scale)
            w = w + weight_operand(self.sites[name], product)
        elif change is not None:
            w = w + expand(scale, w.shape) * change
        if name in values.get(LEVELS, {}):
            levels = jnp.asarray(grid.format.values).astype(w.dtype) + values[LEVELS][name]
            return quant.fake_quant_codebook(w, scale, jnp.sort(levels))
        if name in values.get(SCALES, {}):
            scale, zero = _moved(scale, zero, values[SCALES][name])
        return quant.fake_quant(w, scale, zero, format=grid.format)

    def grid(self, name: str, grid: Grid, values: Values) -> tuple:
        """Return the scale, zero point and format that a weight is on under values."""
        scale, zero, format = grid.scale, grid.zero_point, grid.format
        if name in values.get(LEVELS, {}):
            levels = jnp.asarray(format.values).astype(grid.w.dtype) + values[LEVELS][name]
            format = CodebookFormat(jnp.sort(levels))
        if name in values.get(SCALES, {}):
            scale, zero = _moved(scale.astype(grid.w.dtype), zero, values[SCALES][name])
            zero = None if zero is None else jnp.round(zero).astype(grid.zero_point.dtype)
        return scale, zero, format

    def settled(self, start: Start, values: Values, draft: Draft) -> Draft:
        """Return the draft with what was learned, zero points being integers again."""
        rounded = {name: self.weight(name, grid, values) for name, grid in start.grids.items()}
        learned = {name: self.grid(name, grid, values) for name, grid in start.grids.items()}
        grids = {}
        for name, changes in values.get(ACTIVATIONS, {}).items():
            grids[name] = tuple(
                _whole(moved(grid, changes[str(place)], LSQ), grid) if str(place) in changes
                else grid for place, grid in enumerate(start.q.site_inputs[name].activations)
            )  # fmt: skip
        return dataclasses.replace(
            draft,
            rounded={**draft.rounded, **rounded},
            grids={**draft.grids, **grids},
            learned={**draft.learned, **learned},
        )


def moved(grid: Any, change: dict[str, Array], clip: str = LSQ) -> Any:
    """Return the grid of an activation, or a `Series` of them, with another scale and zero point.

    Raises:
      ValueError: PACT of a grid that does not begin at zero.
    """
    if isinstance(grid, Series):
        return Series(moved(grid.values, change, clip))
    if clip == PACT:
        format, zero = grid.format, grid.zero_point
        require(isinstance(format, IntFormat) and not format.signed and not _any(zero), "clip",
                got="PACT of a grid with negative numbers", expected="one from zero up",
                remedy="learn those sites by clip='lsq'")  # fmt: skip
        change = {"scale": change["scale"]}
        scale, _ = _moved(grid.scale, None, change)
        own = {f.name: getattr(grid, f.name) for f in dataclasses.fields(grid)}
        return PactGrid(**{**own, "scale": scale, "zero_point": None})
    scale, zero = _moved(grid.scale, grid.zero_point, change)
    return dataclasses.replace(grid, scale=scale, zero_point=zero)


def _any(zero) -> bool:
    is_known = zero is not None and not isinstance(zero, jax.core.Tracer)
    return is_known and bool(np.any(np.asarray(zero) != 0))


def _moved(scale, zero, change):
    scale = jnp.asarray(scale)
    new = scale * jnp.exp(change["scale"].astype(scale.dtype))
    if zero is not None and "zero" in change:
        zero = jnp.asarray(zero).astype(scale.dtype) + change["zero"].astype(scale.dtype)
    return new, zero


def _whole(grid: Any, before: Any) -> Any:
    if isinstance(grid, Series):
        return Series(_whole(grid.values, before.values))
    if grid.zero_point is None:
        return grid
    zero = jnp.round(grid.zero_point).astype(jnp.asarray(before.zero_point).dtype)
    return dataclasses.replace(grid, zero_point=zero)


def _changes(scale, zero) -> dict[str, Array]:
    shape, dtype = jnp.shape(scale), float_dtype(scale)
    named = ("scale",) if zero is None else ("scale", "zero")
    return {name: jnp.zeros(shape, dtype) for name in named}


def _static(grid: Any) -> tuple:
    """Return (scale, zero point) of a grid that is the same for all data, () of others."""
    own = grid.values if isinstance(grid, Series) else grid
    is_static = isinstance(own, ActivationGrid) and own.scale is not None
    return (own.scale, own.zero_point) if is_static else ()


def _is_book(grid: Grid) -> bool:
    return isinstance(grid.format, CodebookFormat)


def trained(
    draft: Draft, sites: Sequence[str] | None, choice: Choice
) -> tuple[list[str], dict[str, Grid]]:
    """Return the sites that are trained and, where weights are, the grids of these.

    Args:
      draft: its recipe, whatever cures are yet to come.
      sites: globs; None takes all that are rounded.
      choice: what is learned.

    Raises:
      ValueError: a low rank of what is no matrix; weights that change from call to call.
    """
    check_names("learn", choice.learn, LEARNED)
    inputs = draft.site_inputs()
    named = set(inputs) if sites is None else set(match(draft.calibration.sites, sites))
    names = [name for name in inputs if name in named and name not in draft.plain]
    wants = {WEIGHTS, SCALES, LEVELS} & set(choice.learn)
    grids = single_grids(draft, names) if wants else {}
    for name in grids:
        require(choice.rank is None or has_matrix(draft.sites[name]), name,
                got=f"rank {choice.rank} of products in groups", expected="a matrix of weights",
                remedy=f"leave it out: sites=(..., '!{name}')")  # fmt: skip
    return names, grids


def starting_point(draft: Draft, sites: Sequence[str] | None, choice: Any) -> tuple[Start, Any]:
    """Return where training starts, and the choice with the sites that it trains.

    Args:
      draft: its recipe and cures.
      sites: globs; None takes all that are rounded.
      choice: a `Choice` whose sites are yet to be filled in.

    Raises:
      ValueError: nothing there to learn; a low rank of what is no matrix; weights that change from
        call to call.
    """
    q = draft.quantized()
    names, grids = trained(draft, sites, choice)
    own = {name: draft.sites[name] for name in names}
    start = Start(q, {name: _near(grid, q.site_inputs[name].weight)
                      for name, grid in grids.items()})  # fmt: skip
    choice = dataclasses.replace(choice, sites=own)
    found = choice.first(start, jax.random.key(0))
    require(found, "sites", got=f"{len(names)} of {len(q.site_inputs)} rounded sites, "
            f"at none of which there is something to learn of {', '.join(choice.learn)}",
            expected="a weight that the recipe rounds, or an activation with a static grid",
            remedy="a recipe such as W4A4; static_clips() before, for activations")  # fmt: skip
    if choice.clip == PACT:
        choice.applied(start, found)  # refuses grids with negative numbers
    return start, choice


def _near(grid: Grid, rounded: Any) -> Grid:
    """Return the grid with numbers as near to its weight as may be that round to `rounded`."""
    if not isinstance(grid.format, IntFormat):
        return grid
    rounded = jnp.asarray(rounded).astype(grid.w.dtype)
    scale = expand(grid.scale.astype(grid.w.dtype), grid.w.shape)
    apart = jnp.clip((grid.w - rounded) / scale, -MARGIN, MARGIN)
    return grid._replace(w=rounded + apart * scale)
