"""The rule that runs a denoiser in real low precision: codes multiply codes."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import kernels
from qdiffjax._checks import require
from qdiffjax.kernels import (
    Path,
    Summed,
    is_multiplied,
    mark_missing,
    missing,
    native,
    products,
    rounded_codes,
)
from qdiffjax.kernels.derivatives import simulated_operand, with_derivative
from qdiffjax.precision.calibration import Calibration
from qdiffjax.precision.codes import stored, unstored, weight_codes
from qdiffjax.precision.diagnosis import DiagnosisWarning, listing
from qdiffjax.precision.inputs import inputs_of
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.recipe import Recipe
from qdiffjax.precision.row_codes import RowCodes
from qdiffjax.precision.rules import (
    Series,
    SiteQuant,
    grids_of,
    number,
    quantize_site,
    remembered,
    token_axes,
)
from qdiffjax.precision.settings import Assignment, assign
from qdiffjax.precision.weights import round_weights
from qdiffjax.quant import (
    ActivationGrid,
    AlternatingCodes,
    BlockFormat,
    FloatFormat,
    QTensor,
    dequantize,
    expand,
)
from qdiffjax.quant.straight_through import with_value
from qdiffjax.sites.products import Conv, Dot
from qdiffjax.sites.records import Site
from qdiffjax.sites.transforming import Rule


def lower(
    calibration: Calibration,
    recipe: Recipe | str,
    *,
    sites: Iterable[str] | None = None,
    activations: str | None = None,
    edge_margin: float | None = None,
    path: Path | None = None,
    grid_fn: Callable[[Any, Any, int], ActivationGrid | None] | None = None,
    **rounding,
) -> Quantized:
    """Return the denoiser under a recipe in real low precision: codes that multiply codes.

    The same grids and defaults as those of `quantize`, and the same samplers run it. Its codes are
    `stored` for the path, where the calibration may have to be let go of; `drop_weights` then lets
    go of the float weights.

    Args:
      calibration: see `calibrate`.
      recipe, sites, activations, edge_margin, rounding: see `quantize`. With a round_fn of
        `precision.shaped(key, extra_bits=k)` codes alternate from call to call.
      path: implementation of the kernels; None takes the platform's.
      grid_fn: (low, high, bits) -> how an activation is rounded, None leaving it alone, in place of
        what `activations` says.

    Raises:
      ValueError: what `quantize` refuses; a width or format of a weight that no kernel multiplies.

    Warns:
      DiagnosisWarning: sites that stay simulated, such as transposed convolutions.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.lower(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> qd.precision.lowering_of(denoiser.sites(), q.site_inputs)
      {'input': 'plain', 'in': 'codes', 'out': 'plain', 'output': 'plain'}
    """
    round_fn = rounding.get("round_fn")
    codes_fn: Any = weight_codes if round_fn is None else getattr(round_fn, "codes_fn", None)
    require(codes_fn is not None, "lower", got="round_fn without codes",
            expected="codes that stay, or that alternate: precision.shaped(key, extra_bits=k)",
            remedy="simulate it by `quantize`")  # fmt: skip
    chosen = assign(calibration, recipe, rounding, sites=sites, activations=activations,
                    edge_margin=edge_margin)  # fmt: skip
    c = chosen.calibration
    rounded_fn = functools.partial(round_weights, c.weights, c.sites,
                                 **chosen.rounding | {"round_fn": codes_fn})  # fmt: skip
    return lowered(chosen, inputs_of(chosen, rounded_fn, grid_fn or chosen.grid_fn), path)


def lowered(
    chosen: Assignment, inputs: dict[str, SiteQuant], path: Path | None = None
) -> Quantized:
    """Return the denoiser that multiplies the codes in these inputs of its sites.

    Raises:
      ValueError: error feedback or differences to earlier calls.

    Warns:
      DiagnosisWarning: sites that stay simulated.
    """
    c = chosen.calibration
    memories = tuple(remembered(inputs))
    grids = [g for n in memories for a in inputs[n].activations for g in grids_of(a)]
    kind = "differences" if any(grid.difference for grid in grids) else "error feedback"
    require(not memories, "lower", got=f"{kind} at {', '.join(memories[:3])}",
            expected="activations without", remedy="simulate it by `quantize`")  # fmt: skip
    _warn_of_simulation(c.sites, inputs)
    inputs = stored(inputs, c.sites, path)
    widths = chosen.recipe.widths()
    return Quantized(c.denoiser, inputs, lower_site(path), widths, chosen.settings, c.noise)


def lower_site(path: Path | None = None) -> Rule:
    """Return the rule that multiplies codes, on a path of `kernels`; None is the platform's.

        y = s_x s_w sum_k (q_x - z_x)(q_w - z_w),   q_x = clip(round(x / s_x) + z_x, qmin, qmax)

    Where `quantize_site` multiplies q's real values, so that the two differ by the order of float
    sums; for a bfloat16 or float16 network also by the rounding of those values to its dtype, up
    to 2^-9 or 2^-12 of each, which codes do not suffer. NaN in a rounded activation makes what it
    is summed into NaN. Inputs of a site are a `SiteQuant` with a `QTensor` (or a `Stored` one) for
    the weight operand, and an `ActivationGrid`, or None, for each activation operand. What kernels
    do not multiply is simulated, as `lowering_of` says. Derivatives are the simulation's.
    """
    return _rule(path)


@functools.cache  # one function for each path: rules are compared by identity
def _rule(path: Path | None) -> Rule:
    def rule(site: Site, op: Callable, operands: tuple, inputs: SiteQuant | None):
        if inputs is None:
            return op(*operands), None
        if isinstance(inputs, SiteQuant) and (which := inputs.which()) is not None:
            branches = [lambda args, own=own: rule(site, op, args, own)[0]
                        for own in inputs.alternatives()]  # fmt: skip
            index = jnp.asarray(which)[number(inputs.call)]
            return jax.lax.switch(index, branches, operands), None
        inputs = _at_call(inputs)
        _check_inputs(site, inputs)
        inputs = unstored(inputs)
        if why_simulated(site, inputs):
            return _simulate(site, op, operands, inputs)
        if site.product is None:
            pairs = itertools.zip_longest(operands, inputs.activations)
            return op(*(
                _rounded(x, grid, token_axes(site, i), path) for i, (x, grid) in enumerate(pairs)
            )), None  # fmt: skip
        return _multiply(site, operands, inputs, path), None

    return rule


def lowering_of(sites: Sequence[Site], site_inputs: dict[str, SiteQuant]) -> dict[str, str]:
    """Say how `lower_site` runs each site: plain, codes, weight codes, rounded or simulated."""

    def way(site: Site, inputs: SiteQuant | None) -> str:
        if inputs is None or inputs[:2] in ((None, ()), (None, (None,))):
            return "plain"
        if inputs.which() is not None:
            return " | ".join(dict.fromkeys(way(site, own) for own in inputs.alternatives()))
        inputs = _at_first(inputs)
        why = why_simulated(site, unstored(inputs))
        codes = "codes" if any(inputs.activations) else "weight codes"
        return f"simulated: {why}" if why else "rounded" if site.product is None else codes

    return {site.name: way(site, site_inputs.get(site.name)) for site in sites}


def _warn_of_simulation(sites: Sequence[Site], inputs: dict[str, SiteQuant]) -> None:
    reasons = {
        name: way.replace("simulated: ", "")
        for name, way in lowering_of(sites, inputs).items()
        if "simulated" in way and (inputs[name].weight is not None or any(inputs[name].activations))
    }
    if reasons:
        listed = listing([f"{name} ({why})" for name, why in reasons.items()])
        text = f"simulated, with floats that hold rounded numbers: {listed}"
        warnings.warn(text, DiagnosisWarning, stacklevel=3)


def why_simulated(site: Site, inputs: SiteQuant) -> str | None:
    """Say why a site runs on floats that hold rounded numbers, or None where codes multiply."""
    grids = [grid for grid in inputs.activations if grid is not None]
    if not all(grid.format.is_static for grid in grids):
        return "the width of an activation is data"
    if any(isinstance(grid.format, BlockFormat) or grid.group_size is not None or grid.pieces
           for grid in grids):  # fmt: skip
        return "an activation has scales along what is summed, or one for all"
    if not all(is_multiplied(grid.format) for grid in grids):
        return "the format of an activation is no kernel's"
    if any(grid.key is not None for grid in grids):
        return "an activation is rounded at random"
    if site.product is None:
        return None
    if site.weight is None:
        return None if len(grids) == 2 and isinstance(site.product, Dot) else "one real operand"
    if isinstance(inputs.weight, RowCodes):
        return "codes of the weight are unpacked: groups end inside of what is summed"
    if not isinstance(inputs.weight, QTensor):
        return "the weight is not codes"
    if not is_multiplied(inputs.weight.format):
        return "codes of the weight are unpacked"
    if isinstance(site.product, Dot):
        return _why_not_dot(site, site.product, inputs)
    if any(grid.format != inputs.weight.format for grid in grids if _is_float(grid.format)):
        return "formats of a convolution differ"
    return _why_not_conv(site, site.product, inputs.weight)


def _is_float(format: Any) -> bool:
    return isinstance(format, FloatFormat)


def _why_not_dot(site: Site, product: Dot, inputs: SiteQuant) -> str | None:
    weight, summed = inputs.weight, product.contract[site.weight or 0]
    groups = [weight.scale.shape[a] for a in summed]
    if product.batch[0]:
        if max(groups, default=1) > 1 or not any(inputs.activations):
            return "a batch of weights in groups, or alone"
        return None
    lengths = [weight.shape[a] for a in summed]
    first = next((i for i, n in enumerate(groups) if n != lengths[i]), len(groups))
    return "groups over several axes" if any(g > 1 for g in groups[first + 1 :]) else None


def _why_not_conv(site: Site, product: Conv, weight: QTensor) -> str | None:
    reasons = {
        "the kernel is the left operand": site.weight != 1,
        "groups of channels": max(product.feature_groups, product.batch_groups) > 1,
        "a dilated input": any(d > 1 for d in product.lhs_dilation),
        "the kernel has zero points": weight.zero_point is not None,
        "scales of the kernel vary along what is summed": any(
            weight.scale.shape[a] > 1 for a in product.rhs[1:]
        ),
    }
    return next((why for why, holds in reasons.items() if holds), None)


def _check_inputs(site: Site, inputs: SiteQuant) -> None:
    require(isinstance(inputs, SiteQuant), site.name, got=type(inputs).__name__,
            expected="a SiteQuant", error=TypeError,
            remedy="lower(calibration, recipe) makes them")  # fmt: skip
    inputs.check_plain(site)
    for grid in (g for g in inputs.activations if g is not None and g.format.is_static):
        shape = () if grid.scale is None else jnp.shape(grid.scale)
        require(
            not shape, f"{site.name}, scale of an activation", got=f"shape {shape}",
            expected="a scalar", remedy="scales by step go through the sampler's `per_call`",
        )  # fmt: skip


def _at_call(inputs: SiteQuant) -> SiteQuant:
    """Look up what changes from call to call."""
    if not isinstance(inputs, SiteQuant):
        return inputs
    grids = tuple(a.at(inputs.call) if isinstance(a, Series) else a for a in inputs.activations)
    weight = inputs.weight
    if isinstance(weight, AlternatingCodes | RowCodes):
        weight = weight.at(inputs.call)
    return inputs._replace(activations=grids, weight=weight)


def _at_first(inputs: SiteQuant) -> SiteQuant:
    return _at_call(inputs._replace(call=0))


def _simulate(site: Site, op: Callable, operands: tuple, inputs: SiteQuant):
    """Run `quantize_site` on the numbers that the codes stand for."""
    if site.weight is not None:
        dtype, weight = operands[site.weight].dtype, inputs.weight
        if isinstance(weight, RowCodes):
            inputs = inputs._replace(weight=weight.unpacked(dtype))
        elif isinstance(weight, QTensor):
            inputs = inputs._replace(weight=dequantize(weight, dtype))
    return quantize_site(site, op, operands, inputs)


def _rounded(x, grid: ActivationGrid | None, axes: tuple[int, ...], path: Path | None):
    if grid is None:
        return x
    scale, zero_point = grid.parameters(x, axes)
    rounded = kernels.rounded(x, scale, zero_point, format=grid.format, path=path)
    return with_value(x, rounded) if grid.scale is None else rounded


def _multiply(site: Site, operands, inputs: SiteQuant, path: Path | None):
    product: Any = site.product
    if isinstance(product, Conv):
        return _conv(product, operands[0], inputs, path)
    if site.weight is None or product.batch[0]:
        return _codes_dot(site, product, operands, inputs)
    return _dot(site, product, operands[1 - site.weight], inputs, path)


def _codes_dot(site: Site, product: Dot, operands, inputs: SiteQuant):
    """A product without a kernel of its own: activations with each other, a batch of weights."""
    dims = (product.contract, product.batch)
    grids = dict(zip(site.activations, inputs.activations, strict=False))
    values = tuple(inputs.weight if i == site.weight else x for i, x in enumerate(operands))

    def run(args):
        a, b = (
            rounded_codes(x, args[1][i], product.contract[i]) if i in args[1] else native(x)
            for i, x in enumerate(args[0])
        )
        y = products.dot_general(a, b, dims, out_dtype=product.dtype)
        for i, x in enumerate(args[0]):
            if i in args[1]:
                lost = products.layout(i, args[0], dims)(missing(x, product.contract[i]))
                y = mark_missing(y, lost, None)
        return y

    def simulation(args):
        a, b = (
            simulated_operand(x, args[1].get(i), product.contract[i]) for i, x in enumerate(args[0])
        )
        return jax.lax.dot_general(a, b, dims).astype(product.dtype)

    return with_derivative(run, simulation, (values, grids))


def _dot(site: Site, product: Dot, x, inputs: SiteQuant, path: Path | None):
    """X [*free, *summed] times w [summed, free], whatever the order of their axes."""
    side = site.weight or 0
    w, grid = inputs.weight, (inputs.activations or (None,))[0]
    rows, columns = product.contract[side], product.free(side, w.ndim)
    free = product.free(1 - side, x.ndim)
    kept = tuple(x.shape[a] for a in free)
    x = _narrowed(x, grid).transpose(*free, *product.contract[1 - side]).reshape(*kept, -1)
    y = kernels.matmul(
        x, as_matrix(w, rows, columns), activation=grid, out_dtype=product.dtype, path=path
    )
    y = y.reshape(*kept, *(w.shape[a] for a in columns))
    if side == 1:
        return y
    return y.transpose(*range(len(kept), y.ndim), *range(len(kept)))


def _narrowed(x, grid: ActivationGrid | None):
    # Kernels sum in float32; but codes are those of the simulation, rounded in float64 like x.
    return x.astype(jnp.float32) if grid is None and x.dtype == jnp.float64 else x


def as_matrix(w: QTensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> QTensor:
    """Codes as a matrix [rows, columns]; scales [1 or groups, 1 or columns]."""
    lengths = [w.shape[a] for a in rows], [w.shape[a] for a in columns]

    def flat(granules):
        if granules is None:
            return None
        moved = granules.transpose(*rows, *columns)
        groups, kept = moved.shape[: len(rows)], moved.shape[len(rows) :]
        if any(n > 1 for n in kept):
            moved = expand(moved, (*groups, *lengths[1]))
            moved = jnp.broadcast_to(moved, (*groups, *lengths[1]))
        return moved.reshape(math.prod(groups), -1)

    codes = w.codes.transpose(*rows, *columns).reshape(*map(math.prod, lengths))
    parts = codes, flat(w.scale), flat(w.zero_point), w.format
    return Summed(*parts, flat(w.sums)) if isinstance(w, Summed) else QTensor(*parts)


def _conv(product: Conv, x, inputs: SiteQuant, path: Path | None):
    """A convolution in the layout of the kernels: channels last."""
    w, grid = inputs.weight, (inputs.activations or (None,))[0]
    x = _narrowed(x, grid).transpose(product.lhs[0], *product.lhs[2:], product.lhs[1])
    order = (*product.rhs[2:], product.rhs[1], product.rhs[0])
    w = jax.tree.map(lambda a: a.transpose(order), w)
    y = kernels.conv(
        x, w, activation=grid, strides=product.strides, padding=product.padding,
        rhs_dilation=product.rhs_dilation, out_dtype=product.dtype, path=path,
    )  # fmt: skip
    last = y.ndim - 1
    places = dict(zip(product.out, (0, last, *range(1, last)), strict=True))
    return y.transpose(*(places[a] for a in range(y.ndim)))
