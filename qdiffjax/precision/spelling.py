"""Recipes with everything said, so that they mean the same wherever they are read."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from qdiffjax._checks import require
from qdiffjax.precision.calibration import Calibration
from qdiffjax.precision.formats import DYNAMIC, STATIC, SUMS, OperandFormat
from qdiffjax.precision.recipe import Recipe, SiteBits
from qdiffjax.precision.settings import assign, mapped, static_grid
from qdiffjax.quant import IntFormat


def spelled_out(
    calibration: Calibration,
    recipe: Recipe | str,
    *,
    sites: Iterable[str] | None = None,
    activations: str | None = None,
    edge_margin: float | None = None,
) -> Recipe:
    """Return a recipe in which all is said that `quantize` would choose by itself.

    Sites, signs, scales of activations, rounding of weights and ranges, so that it can be printed,
    compared and written as JSON: quantized and lowered without options it gives what the words and
    options give, bit for bit.

    Args:
      calibration, recipe, sites, activations, edge_margin: as for `quantize`.

    Raises:
      ValueError: what `quantize` refuses; widths that are not known.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> recipe = qd.precision.spelled_out(calibration, "W4A8")
      >>> [str(entry) for entry in recipe.bits["in"]]
      ['4 symmetric sums', '8 affine dynamic']
    """
    chosen = assign(calibration, recipe, {}, sites=sites, activations=activations,
                    edge_margin=edge_margin)  # fmt: skip
    scales = STATIC if chosen.grid_fn is static_grid else DYNAMIC
    rounding = SUMS if "adjust_fn" in chosen.rounding else None

    def said(name: str, entry: Any, is_weight: bool) -> Any:
        if entry is None:
            return None
        if isinstance(entry, OperandFormat):
            own = entry.rounding or (rounding if is_weight else None)
            return dataclasses.replace(entry, rounding=own)
        require(isinstance(entry, int), f"recipe, {name}", got="a width that is data",
                expected="known widths", remedy="spell recipes out one by one")  # fmt: skip
        if is_weight:
            return OperandFormat(IntFormat(entry), rounding=rounding)
        return OperandFormat(IntFormat(entry, signed=False), scales=scales)

    def table(bits: dict[str, SiteBits]) -> dict[str, SiteBits]:
        return {name: SiteBits(said(name, each.weight, True), said(name, each.activation, False))
                for name, each in bits.items()}  # fmt: skip

    return dataclasses.replace(mapped(chosen.recipe, table), ranges=chosen.calibration.ranges)
