"""Recipes: the formats of every site, as data; and the quantized weights they ask for."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from qdiffjax._typing import EpsFn
from qdiffjax.quant import calibration
from qdiffjax.quant.formats.integers import MAX_BITS, MIN_BITS, IntFormat
from qdiffjax.quant.straight_through import fake_quant
from qdiffjax.sites import rules
from qdiffjax.sites.listing import match, suggest
from qdiffjax.sites.plan import Site
from qdiffjax.sites.transforming import transform


class SiteBits(NamedTuple):
    """Widths at one site; None leaves full precision.

    Weights are signed narrow, activations unsigned affine.
    """

    weight: int | None = None
    activation: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Widths by site; sites not named stay in full precision.

    What varies by step as well (scales, switches) is data of the sampler's calls: see
    `Quantized` and `quantized_call`.
    """

    bits: dict[str, SiteBits]

    def to_json(self) -> str:
        """Write the recipe as JSON: {site: {"weight": bits, "activation": bits}}."""
        return json.dumps({name: b._asdict() for name, b in self.bits.items()}, indent=1)

    @classmethod
    def from_json(cls, text: str, sites: Sequence[Site]) -> "Recipe":
        """Read what `to_json` wrote, for a network with these sites.

        Raises:
          ValueError: a name that is no site, or bits outside 1..16.
        """
        names = [s.name for s in sites]
        bits = {}
        for name, entry in json.loads(text).items():
            if name not in names:
                raise ValueError(f"The recipe names no site: {name!r}. {suggest(name, names)}")
            bits[name] = SiteBits(*(check_bits(entry.get(k)) for k in SiteBits._fields))
        return cls(bits)


def check_bits(bits: int | None) -> int | None:
    """Return `bits` if it is a width or None; raise ValueError otherwise."""
    is_width = isinstance(bits, int) and not isinstance(bits, bool)
    if bits is not None and not (is_width and MIN_BITS <= bits <= MAX_BITS):
        raise ValueError(f"got {bits!r} bits, expected {MIN_BITS}..{MAX_BITS}, or none for float.")
    return bits


def uniform(
    sites: Sequence[Site],
    *,
    weight_bits: int | None,
    activation_bits: int | None,
    globs: Iterable[str] = ("*",),
) -> Recipe:
    """One pair of widths at every site that matches the globs; see `match` for their syntax.

    The sites `input` and `output` have activations only: they are the survey's Q(x_t) and
    Q(eps), eq. 11. Leave them out with the globs "*", "!input", "!output".
    """
    bits = SiteBits(check_bits(weight_bits), check_bits(activation_bits))
    chosen = set(match(sites, globs))
    return Recipe({
        s.name: bits if s.weight is not None else bits._replace(weight=None)
        for s in sites
        if s.name in chosen
    })  # fmt: skip


def parse_shorthand(text: str) -> SiteBits:
    """Read W4A8, W4 or A8.

    Raises:
      ValueError: anything else.
    """
    found = re.fullmatch(r"(?:W(\d+))?(?:A(\d+))?", text.strip().upper())
    if not text.strip() or not found:
        raise ValueError(f"got the recipe {text!r}, expected a form like W4A8, W4 or A8.")
    weight, activation = (None if b is None else check_bits(int(b)) for b in found.groups())
    return SiteBits(weight, activation)


def output_channels(site: Site) -> tuple[int, ...]:
    """Scale shape of a weight with one scale for each output channel: the axes not summed over."""
    assert site.weight is not None
    shape, summed = site.shapes[site.weight], site.contract_axes[site.weight]
    return tuple(1 if axis in summed else n for axis, n in enumerate(shape))


def whole_tensor(site: Site) -> tuple[int, ...]:
    """Scale shape of a weight with a single scale."""
    assert site.weight is not None
    return (1,) * len(site.shapes[site.weight])


def weight_operands(eps_fn: EpsFn, params, x, t) -> dict[str, jax.Array]:
    """Return the weight operand of every site that has one, as the site sees it, by name."""
    collect = transform(eps_fn, rules.collect_weights)
    return jax.jit(lambda p: collect(p, x, t)[1])(params)


def prepare(
    weights: dict[str, Any],
    sites: Sequence[Site],
    recipe: Recipe,
    *,
    calibrate: Callable = calibration.absmax,
    granularity: Callable[[Site], tuple[int, ...]] = output_channels,
) -> dict[str, jax.Array]:
    """Quantize the weights of a recipe once, outside every loop.

    Args:
      weights: from `weight_operands`.
      sites: the network's sites.
      recipe: which weights get how many bits.
      calibrate: (w, format=, scale_shape=) -> (scale, zero_point), as `calibration.absmax`.
      granularity: the shape of a site's weight scale; its shape is the granularity.

    Returns:
      The quantized weight operands in real units, by site.
    """
    bits = {n: b.weight for n, b in recipe.bits.items() if b.weight is not None and n in weights}
    shapes = {s.name: granularity(s) for s in sites if s.name in bits}
    return {
        name: _round_weight(weights[name], width, scale_shape=shapes[name], calibrate=calibrate)
        for name, width in bits.items()
    }


def _round_weight(w, width: int, *, scale_shape, calibrate):
    # One bit is another format, hence static; other widths are data, so that they share a program.
    if width == 1:
        return _fake_quant_weight(w, IntFormat(1), scale_shape, calibrate)
    return _round_traced(w, width, scale_shape=scale_shape, calibrate=calibrate)


@functools.partial(jax.jit, static_argnames=("scale_shape", "calibrate"))
def _round_traced(w, width, *, scale_shape, calibrate):
    return _fake_quant_weight(w, IntFormat(width), scale_shape, calibrate)


def _fake_quant_weight(w, format: IntFormat, scale_shape, calibrate):
    scale, zero_point = calibrate(w, format=format, scale_shape=scale_shape)
    return fake_quant(w, scale, zero_point, format=format)
