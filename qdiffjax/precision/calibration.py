"""Post-training quantization: ranges observed on sampling runs, turned into a `Quantized`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import diffusion, precision
from qdiffjax._typing import EpsFn
from qdiffjax.kernels import Path
from qdiffjax.precision.codes import stored
from qdiffjax.precision.lowering import lower
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.recipe import Recipe
from qdiffjax.quant import ActivationGrid, activation_grid
from qdiffjax.quant.formats.base import Format
from qdiffjax.quant.formats.integers import IntFormat
from qdiffjax.sites import rules
from qdiffjax.sites.plan import Site
from qdiffjax.sites.transforming import transform

Ranges = dict[str, tuple[Any, ...]]
FormatFn = Callable[[int], Format]


def range_of(x):
    """(min, max) of an activation, two scalars."""
    return jnp.min(x), jnp.max(x)


def observe_ranges(
    eps_fn: EpsFn, params, x_T, steps: diffusion.Steps, *, key=None, stat_fn: Callable = range_of
) -> Ranges:
    """Range of every activation operand at every step of a full-precision sampling run.

    Args:
      eps_fn: the denoiser.
      params: its parameters.
      x_T: initial noise of the calibration samples [batch, *shape].
      steps: the sampler.
      key: noise of a stochastic sampler.
      stat_fn: activation -> (low, high).

    Returns:
      For each site, (low [num_steps], high [num_steps]) of each activation operand.
    """
    g = transform(eps_fn, rules.observe(stat_fn))
    return diffusion.sample(
        lambda x, t, _, state: (*g(params, x, t), state),
        x_T,
        steps,
        key=key,
        keep_trajectory=False,
    ).outputs


def over_steps(ranges: Ranges) -> Ranges:
    """One static range per operand: the widest over all steps."""
    return jax.tree.map(
        lambda r: (jnp.min(r[0]), jnp.max(r[1])), ranges, is_leaf=_is_range
    )  # fmt: skip


def widened(ranges: Ranges, names: Sequence[str], factor: float) -> Ranges:
    """Return the ranges with those of the activations at the sites `names` multiplied by `factor`.

    Every operand whose observed range equals that of a named site is the same activation, and is
    widened with it: the first convolution reads what `input` reads. Worth it for the network's
    input and output: at the noise end eps is nearly x_t, so a pixel of noise beyond the range that
    calibration saw is clipped for good, and what was missed grows by alpha_0 / alpha_T on its way
    to the sample. A few calibration samples leave such a pixel to one sample in about thirty.

    Raises:
      ValueError: a name without ranges.
    """
    missing = [name for name in names if name not in ranges]
    if missing:
        raise ValueError(f"got no ranges of {missing}, expected names among {sorted(ranges)}.")
    ends = [ranges[name][0] for name in names]

    def wider(operand):
        is_end = any(all(map(_same, operand, end)) for end in ends)
        return tuple(a * factor for a in operand) if is_end else operand

    return {name: tuple(map(wider, operands)) for name, operands in ranges.items()}


def _same(a, b) -> bool:
    return bool(jnp.array_equal(a, b))


def _is_range(node) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and not isinstance(node[0], tuple)


def site_inputs(recipe: Recipe, weights: dict[str, Any], ranges: Ranges) -> dict[str, Any]:
    """Return the inputs of the rule `quantize` under a recipe.

    Args:
      recipe: widths by site.
      weights: quantized weights by site, from `precision.prepare`.
      ranges: static ranges from `over_steps`; with a leading step axis (from `observe_ranges`)
        the result is for the sampler's `per_call`.
    """

    def grid_fn(low, high, bits: int) -> ActivationGrid:
        return activation_grid(low, high, _unsigned(bits)).with_bits_as_data()

    return _inputs(recipe, weights, ranges, grid_fn)


def _inputs(recipe: Recipe, weights, ranges: Ranges, grid_fn: Callable) -> dict[str, Any]:
    """A `SiteQuant` for each site of a recipe; grid_fn(low, high, bits) is an activation's grid."""
    inputs = {}
    for name, bits in recipe.bits.items():
        activations: tuple = ()
        if bits.activation is not None:
            width = bits.activation
            activations = tuple(grid_fn(low, high, width) for low, high in ranges[name])
        inputs[name] = precision.SiteQuant(weights.get(name), activations)
    return inputs


def quantize_denoiser(
    eps_fn: EpsFn, params, sites: Sequence[Site], recipe: Recipe, weights, ranges: Ranges
) -> Quantized:
    """Put a recipe's weights and static activation grids together."""
    return Quantized(eps_fn, params, site_inputs(recipe, weights, over_steps(ranges)))


def _unsigned(bits: int) -> IntFormat:
    return IntFormat(bits, signed=False)


def code_inputs(
    recipe: Recipe, weights: dict[str, Any], ranges: Ranges, *, format_fn: FormatFn = _unsigned
) -> dict[str, Any]:
    """Return the inputs of the rule `lower` under a recipe: `site_inputs` as codes.

    Args:
      recipe: widths by site.
      weights: codes by site, from `precision.prepare_codes`.
      ranges: as `site_inputs`.
      format_fn: bits -> format of the activations: unsigned and affine if an integer format
        without sign, else symmetric about 0.
    """

    def grid_fn(low, high, bits: int) -> ActivationGrid:
        return activation_grid(low, high, format_fn(bits))

    return _inputs(recipe, weights, ranges, grid_fn)


def lower_denoiser(
    eps_fn: EpsFn,
    params,
    sites: Sequence[Site],
    recipe: Recipe,
    weights: dict[str, Any],
    ranges: Ranges,
    *,
    path: Path | None = None,
) -> Quantized:
    """`quantize_denoiser` in real low precision: the same scales, codes that multiply codes.

    Args:
      eps_fn, params, sites, recipe, ranges: as there.
      weights: codes by site, from `precision.prepare_codes`.
      path: implementation of the kernels; None takes the platform's.

    Returns:
      What samplers run as they run the simulation, its codes `precision.stored` for the path, where
      `weights` may have to be let go of; `precision.drop_weights` then lets go of the float ones.
    """
    inputs = stored(code_inputs(recipe, weights, over_steps(ranges)), sites, path)
    return Quantized(eps_fn, params, inputs, lower(path))
