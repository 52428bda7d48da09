"""Roundings that change from call to call: their phases, and what one call hands on to the next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Key
from qdiffjax.diffusion import Steps
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.rules import Series, Switch, grids_of, remembered
from qdiffjax.precision.shaping import site_key
from qdiffjax.quant import RoundingSequence


def redrawn(q: Quantized, key: Key) -> Quantized:
    """Return q with the phases of all its sequences drawn anew; another seed of them.

    Args:
      q: with weights that are rounded anew at every call (`shaped`), at all steps or at some.
      key: of the phases; each site has its own.
    """

    def anew(weight, key):
        if isinstance(weight, Switch):
            parts = (anew(a, jax.random.fold_in(key, i)) for i, a in enumerate(weight.alternatives))
            return Switch(tuple(parts), weight.which)
        return weight.redrawn(key) if isinstance(weight, RoundingSequence) else weight

    inputs = {name: each._replace(weight=anew(each.weight, site_key(key, name)))
              for name, each in q.site_inputs.items()}  # fmt: skip
    return dataclasses.replace(q, site_inputs=inputs)


def cancelled(q: Quantized, steps: Steps) -> Quantized:
    """Return q with what feedback hands on weighed by the sampler's own coefficients.

        r_{i+1} = (c_eps,i / c_eps,i+1) (x_i + r_i - q_i)

    A step adds c_eps,i times what the network commits, so that c_eps,i (q_i - x_i) is what adds up:
    of the error sum_i c_eps,i G_i (q_i - x_i) the variation of G, the gain from the next state
    on, is left, and not that of the coefficients. It pays with few steps, whose coefficients differ
    most. What the later steps of the sampler alone would make of an error, prod_{j > i} c_x,j,
    belongs into no weight: the network takes it back (docs/findings.md). Takes headroom: where
    coefficients fall along the run, |r| exceeds half a step by their ratio.

    Args:
      q: with activations that are rounded with feedback; others stay.
      steps: the sampler that will run it, without memory.

    Raises:
      ValueError: no feedback; a sampler with memory; a step that does not listen to the network.
    """
    require(steps.is_first_order, "steps",
            got="a sampler with memory or with matrix coefficients",
            expected="one whose steps read the state alone, such as ddim",
            remedy="leave the residuals as they are")  # fmt: skip
    h = np.asarray(steps.coeffs.eps, np.float64)
    require(bool(np.all(h != 0)), "steps", got="a c_eps of 0",
            expected="steps that all use the network", remedy="leave that step out")  # fmt: skip
    ratios = jnp.asarray(np.append(h[:-1] / h[1:], 1.0), jnp.float32)
    found = {name for name, inputs in q.site_inputs.items()
             if any(_feeds_back(a) for a in inputs.activations)}  # fmt: skip
    require(found, "cancelled", got="no activation that is rounded with feedback", expected="some",
            remedy="quantize with a recipe such as 'A8 shaped'")  # fmt: skip

    def carried(operand):
        if not _feeds_back(operand):
            return operand
        if isinstance(operand, Switch):
            return Switch(tuple(map(carried, operand.alternatives)), operand.which)
        num = len(ratios)
        values = operand.values if isinstance(operand, Series) else jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num, *jnp.shape(leaf))), operand
        )  # fmt: skip
        return Series(dataclasses.replace(values, carry=ratios))

    inputs = {
        name: each._replace(activations=tuple(map(carried, each.activations)))
        if name in found else each for name, each in q.site_inputs.items()
    }  # fmt: skip
    return dataclasses.replace(q, site_inputs=inputs)


def narrowed(q: Quantized, dtype) -> Quantized:
    """Return q with what its calls hand on kept in a narrower type, rounded to nearest.

        q_i = Q(x_i + r_i),   r_{i+1} = R(x_i + r_i - q_i)

    A residual is half a step at most, so that R loses 2^-9 of it in bfloat16 and 2^-4 in float8
    E4M3. Nothing makes up for that: an error drawn anew at every call, as of so much finer a grid.

    Args:
      q: with activations that are rounded with feedback or by differences.
      dtype: a type of real numbers, such as `jnp.bfloat16`; of float8_e4m3fn nothing beyond 448 can
        be kept, which rounded operands of differences may be.

    Raises:
      ValueError: no such activation; a type that is not of real numbers.
    """
    require(remembered(q.site_inputs), "narrowed", got="no activation that is rounded with memory",
            expected="some", remedy="quantize with a recipe such as 'A8 shaped'")  # fmt: skip
    require(jnp.issubdtype(jnp.dtype(dtype), jnp.floating), "dtype", got=jnp.dtype(dtype).name,
            expected="a type of real numbers",
            remedy="such as jnp.bfloat16 or jnp.float8_e4m3fn")  # fmt: skip
    return dataclasses.replace(q, memory_dtype=jnp.dtype(dtype))


def _feeds_back(operand) -> bool:
    return any(grid.feedback for grid in grids_of(operand))
