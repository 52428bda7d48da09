"""Weights as codes: quantized once, and stored as the kernels read them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from qdiffjax._checks import require
from qdiffjax.kernels import Path, backends, narrow, summed
from qdiffjax.precision.own_codes import OwnCodes, check_codes, with_codes
from qdiffjax.precision.rules import Series, SiteQuant, Switch
from qdiffjax.quant import Format, IntFormat, QTensor, quantize
from qdiffjax.sites import Site


def weight_codes(site: Site, w, scale, zero_point, format: Format) -> QTensor:
    """Round a weight to codes: `weights.simulated`, not yet back in real units.

    dequantize(codes) is what that returns, bit for bit. Codes of at most 4 bits are stored as
    int4, see `kernels.narrow`. Of other formats than kernels multiply they are unpacked at a call.

    Raises:
      ValueError: a width that no kernel multiplies, or a format of your own without `levels()`;
        names the site.
    """
    bits = format.bits
    require(
        2 <= bits <= 8, site.name, got=f"{bits} bits",
        expected="2..8 for codes that kernels multiply",
        remedy="leave that weight out of the recipe, or simulate the recipe by `quantize`",
    )  # fmt: skip
    codes = _codes(w, scale, zero_point, format=with_codes(format, site.name))
    if isinstance(codes.format, OwnCodes):
        check_codes(codes, w, site.name)
    return codes


@functools.partial(jax.jit, static_argnames="format")
def _codes(w, scale, zero_point, *, format: Format) -> QTensor:
    return narrow(quantize(w, scale, zero_point, format=format))


@functools.partial(jax.tree_util.register_dataclass, data_fields=("held",), meta_fields=("order",))
@dataclasses.dataclass(frozen=True)
class Stored:
    """Codes of a weight, their axes in the order in which kernels read them.

    Attributes:
      held: the codes, transposed; axis i is axis order[i] of the weight.
      order: static.
    """

    held: QTensor
    order: tuple[int, ...]

    @property
    def weight(self) -> QTensor:
        """The codes as the site sees them; in a program where kernels turn them back, for free."""
        return _transposed(self.held, [self.order.index(a) for a in range(len(self.order))])


def stored(
    site_inputs: dict[str, Any], sites: Sequence[Site], path: Path | None = None
) -> dict[str, Any]:
    """Return inputs of the rule `lower_site` whose codes lie as the kernels of a path read them.

    So no call moves a weight: where kernels want [N, K] and codes are [K, N], a sampler's scan
    keeps a second copy of all of them. Nor does a call add codes up: sums come with them, see
    `kernels.operands.Summed`. Numbers and results stay, on any path. Where the order is another,
    arrays are new: let go of the given ones.

    Args:
      site_inputs: a `SiteQuant` by site; codes are `QTensor`.
      sites: the network's sites.
      path: of `kernels`; None takes the platform's.
    """
    path = backends.default() if path is None else path
    if not path.sums_last:
        return site_inputs
    by_name = {s.name: s for s in sites}
    return {name: _sums_last(by_name[name], inputs) for name, inputs in site_inputs.items()}


def unstored(inputs: SiteQuant) -> SiteQuant:
    """Inputs of a site with its codes as it sees them."""
    is_stored = isinstance(inputs.weight, Stored)
    return inputs._replace(weight=inputs.weight.weight) if is_stored else inputs


def _sums_last(site: Site, inputs: SiteQuant) -> SiteQuant:
    if site.product is None or site.weight is None or not isinstance(inputs.weight, QTensor):
        return inputs
    order = site.product.sums_last(site.weight, inputs.weight.ndim)
    weight = inputs.weight
    if any(map(_shifts, inputs.activations)):
        weight = summed(weight, site.contract_axes[site.weight])
    return inputs._replace(weight=Stored(_transposed(weight, order), order))


def _shifts(operand: Any) -> bool:
    """Whether codes of an activation mean 0.0 by another one than 0, as kernels hold them."""
    if isinstance(operand, Switch):
        return any(map(_shifts, operand.alternatives))
    grid = operand.values if isinstance(operand, Series) else operand
    if grid is None or not isinstance(grid.format, IntFormat) or not grid.format.is_static:
        return False
    return grid.zero_point is not None or not grid.format.signed


def _transposed(q: QTensor, order: Sequence[int]) -> QTensor:
    return jax.tree.map(lambda a: a.transpose(order), q)
