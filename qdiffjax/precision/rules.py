"""The rule that quantizes: what it does at a site, and what a site is given for it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.precision.around import Around
from qdiffjax.quant import ActivationGrid, AlternatingCodes, RoundingSequence, rounding
from qdiffjax.sites import Site
from qdiffjax.sites.products import Conv


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Switch:
    """One of several ways to round an operand, by the number of the sampler's network call.

    Attributes:
      alternatives: of a weight or an activation, see `SiteQuant`; None is full precision.
      which: number of the alternative at each call, integers [num_calls].
    """

    alternatives: tuple
    which: Any

    def over(self, call, fn: Callable[[Any, Any], Any], x):
        """Return fn(alternative of this call, x)."""
        branches = [functools.partial(fn, alternative) for alternative in self.alternatives]
        return jax.lax.switch(jnp.asarray(self.which)[number(call)], branches, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Series:
    """Something of one structure for each of the sampler's network calls: leaves [num_calls, ...].

    Such as the grid of an activation whose scale is static and changes from step to step.
    """

    values: Any

    def at(self, call):
        """Return that of a call."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[number(call)], self.values)


def number(call):
    """Return the number of a call, to index with.

    Raises:
      ValueError: there is none.
    """
    require(call is not None, "rounding by call", got="no number of the call",
            expected="which call of the sampler this is",
            remedy="pass per_call=q.calls(steps) to whatever runs the sampler")  # fmt: skip
    return jnp.asarray(call).astype(jnp.int32)


class SiteQuant(NamedTuple):
    """Inputs of `quantize_site` at one site.

    weight: the quantized weight operand, in real units, a `RoundingSequence` of it, or None to
    leave it alone; activations: an `ActivationGrid`, a `Series` of them or None for each activation
    operand, in order; () for none; each may be a `Switch`; call: number of the sampler's network
    call, which sequences, series and switches need; residuals: what earlier calls lost of each
    activation operand that is rounded with feedback, the call's state; around: what is done around
    the product, see `Around`.
    """

    weight: Any = None
    activations: tuple = ()
    call: Any = None
    residuals: tuple = ()
    around: Around | None = None

    @property
    def needs_call(self) -> bool:
        """Whether the rounding depends on the number of the call."""
        has_more = self.around is not None and self.around.lengths
        changing = Switch | RoundingSequence | AlternatingCodes
        is_changing = isinstance(self.weight, changing) or getattr(self.weight, "alternates", False)
        return bool(has_more) or is_changing or any(
            isinstance(a, Switch | Series) or getattr(a, "key", None) is not None
            for a in self.activations
        )  # fmt: skip

    def alternatives(self) -> tuple["SiteQuant", ...]:
        """Return what the site is given at some call, one for each alternative of its switches."""
        operands = (self.weight, *self.activations)
        num = max((len(o.alternatives) for o in operands if isinstance(o, Switch)), default=1)
        choices = [o.alternatives if isinstance(o, Switch) else (o,) * num for o in operands]
        return tuple(self._replace(weight=weight, activations=activations)
                     for weight, *rest in zip(*choices, strict=True)
                     for activations in (tuple(rest),))  # fmt: skip

    def which(self) -> Any:
        """Return which of `alternatives` each call takes [num_calls], None if there is but one."""
        operands = (self.weight, *self.activations)
        return next((o.which for o in operands if isinstance(o, Switch)), None)

    def check_plain(self, site: Site) -> None:
        """Refuse what is done around a product, for readers that look at roundings alone.

        Raises:
          ValueError: another basis, a branch or a correction.
        """
        require(self.around is None, site.name, got="a cure around its product",
                expected="roundings alone, which is all that this reads",
                remedy="use attribute, predict or a run, which take cures")  # fmt: skip

    @property
    def has_memory(self) -> tuple[bool, ...]:
        """Whether each activation operand is rounded with memory of earlier calls, at some call."""
        return tuple(any(g.has_memory for g in grids_of(a)) for a in self.activations)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of calls that its switches and series are made for."""
        switches = [a.which for a in (self.weight, *self.activations) if isinstance(a, Switch)]
        parts = (p for a in self.activations for p in getattr(a, "alternatives", (a,)))
        series = [jax.tree.leaves(p)[0] for p in parts if isinstance(p, Series)]
        own = () if self.around is None else self.around.lengths
        return (*(len(a) for a in (*switches, *series)), *own)


def remembered(site_inputs: Mapping[str, Any]) -> dict[str, tuple[bool, ...]]:
    """Return the sites that round with memory of earlier calls: `has_memory` of each."""
    return {name: inputs.has_memory for name, inputs in site_inputs.items()
            if isinstance(inputs, SiteQuant) and any(inputs.has_memory)}  # fmt: skip


def grids_of(operand: Any) -> tuple[ActivationGrid, ...]:
    """Return the grids that an activation operand is rounded to, at one call or another."""
    if isinstance(operand, Switch):
        return tuple(grid for each in operand.alternatives for grid in grids_of(each))
    grid = operand.values if isinstance(operand, Series) else operand
    return (grid,) if isinstance(grid, ActivationGrid) else ()


def quantize_site(site: Site, op: Callable, operands: tuple, inputs: SiteQuant | None):
    """Run the operation on quantized operands; inputs None leaves the site alone.

        y = op(Q(activation), Q(weight))

    and what is done around it, see `Around`.

    Survey, section 2.3 and eq. 11: Q(theta), Q(h_t), and at the sites `input` and `output`
    Q(x_t) and Q(eps). The weight was quantized before the loop over steps, see `quantize`. Returns
    the residuals of operands that are rounded with feedback beside the result, None for none.
    """
    if inputs is None:
        return op(*operands), None
    values, around = list(operands), inputs.around
    call = inputs.call
    if around is not None and around.lengths:
        call = number(call)
    if around is not None and around.bases:
        for index in site.activations:
            values[index] = around.enter(values[index], group_axis(site, index), call)
    exact = list(values)
    if site.weight is not None and inputs.weight is not None:
        values[site.weight] = _weight(inputs.weight, values[site.weight], inputs.call)
    residuals: list[Any] = [None] * len(inputs.activations)
    remembered = inputs.has_memory
    for place, (index, grid) in enumerate(zip(site.activations, inputs.activations, strict=False)):
        if grid is None:
            continue
        fn = functools.partial(_rounded, site, index)
        pair = values[index], None
        if remembered[place]:
            require(inputs.residuals, site.name, got="no residual",
                    expected="what earlier calls hand on of an operand that is rounded with memory",
                    remedy="pass state=q.start(x_T) to whatever runs the sampler")  # fmt: skip
            pair = values[index], inputs.residuals[place].astype(values[index].dtype)
        values[index], residuals[place] = at_call(fn, grid, inputs.call, pair)
    return _left(site, op, op(*values), exact, around, call), (
        tuple(residuals) if any(remembered) else None
    )


def _left(site: Site, op: Callable, y, exact: list, around: Around | None, call):
    """Return the result of a product with its branch, corrected."""
    if around is None:
        return y
    if around.branch is not None:
        assert site.weight is not None
        exact[site.weight] = around.branch.astype(exact[site.weight].dtype)
        y = y + op(*exact)
    return y if around.correction is None else around.correction(y, call)


def _rounded(site: Site, index: int, grid: ActivationGrid | None, pair):
    """Return (x, residual) after rounding; without feedback the residual passes by."""
    x, residual = pair
    if grid is None:
        return pair
    axes, groups = token_axes(site, index), group_axis(site, index)
    if grid.has_memory:
        return grid.round_with_residual(x, residual, axes, groups)
    return round_activation(x, grid, axes=axes, group_axis=groups), residual


def _weight(weight, w, call):
    """Return the weight operand of a call in place of w."""
    if isinstance(weight, Switch):
        return weight.over(call, lambda weight, w: _weight(weight, w, call), w)
    if isinstance(weight, RoundingSequence):
        weight = weight.at(call)
    require(weight is None or hasattr(weight, "astype"), "weight", got=type(weight).__name__,
            expected="rounded numbers, which the simulation multiplies",
            remedy="codes are for `lower_site`, the rule of `lower`", error=TypeError)  # fmt: skip
    return w if weight is None else weight.astype(w.dtype)


def at_call(fn: Callable[[ActivationGrid | None, Any], Any], grid, call, x):
    """Return fn(grid, x) with the grid of a call, looked up in a `Switch` or a `Series`."""
    if isinstance(grid, Switch):
        return grid.over(call, lambda grid, x: at_call(fn, grid, call, x), x)
    if isinstance(grid, Series):
        grid = grid.at(call)
    if grid is not None and grid.key is not None and call is not None:
        grid = dataclasses.replace(grid, key=jax.random.fold_in(grid.key, number(call)))
    return fn(grid, x)


def group_axis(site: Site, index: int) -> int | None:
    """Return the axis of an operand along which groups lie: the last that is summed, channels of a
    convolution; None where there is no product.
    """
    if site.product is None:
        return None
    if isinstance(site.product, Conv):
        return (site.product.lhs, site.product.rhs)[index][1]
    return site.contract_axes[index][-1] if site.contract_axes[index] else None


def token_axes(site: Site, index: int) -> tuple[int, ...]:
    """Return the axes of an operand that share a dynamic grid.

    At an edge and at a stored value those of one sample, its first axis, so that samples do not
    mix; where the network's author made the site, which may have no axis of samples, all.
    """
    rank = len(site.shapes[index])
    first = int(site.kind not in ("mark", "named") and rank > 1)
    return site.contract_axes[index] or tuple(range(first, rank))


def round_activation(
    x,
    grid: ActivationGrid,
    round_fn: rounding.RoundFn | None = None,
    *,
    axes: tuple[int, ...] = (),
    group_axis: int | None = None,
):
    """Fake-quantize an activation operand [*shape], with the straight-through derivative.

    A `round_fn` takes the place of the rounding that the grid asks for; `axes` share a dynamic
    grid, and groups lie along `group_axis`, see `ActivationGrid.round`.
    """
    return grid.round(x, axes, round_fn, group_axis)
