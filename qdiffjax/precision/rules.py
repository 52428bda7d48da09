"""The rule that quantizes: what it does at a site, and what a site is given for it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.quant import rounding
from qdiffjax.quant.straight_through import fake_quant_codes
from qdiffjax.sites.plan import Site


class ActivationQuant(NamedTuple):
    """How one activation operand is rounded.

        x_hat = scale * (clip(round(x / scale) + zero_point, qmin, qmax) - zero_point)

    All fields are data, so that bits and scales may vary by step and sweep without recompiling.
    `scale` is a scalar or divides the operand's shape; `zero_point` None is symmetric; a `key`
    makes the rounding stochastic.
    """

    scale: Any
    zero_point: Any
    qmin: Any
    qmax: Any
    key: Any = None


class SiteQuant(NamedTuple):
    """Inputs of `quantize_site` at one site.

    weight: the quantized weight operand, in real units, or None to leave it alone;
    activations: an `ActivationQuant` or None for each activation operand, in order; () for none.
    """

    weight: Any = None
    activations: tuple = ()


def quantize_site(site: Site, op: Callable, operands: tuple, inputs: SiteQuant | None):
    """Run the operation on quantized operands; inputs None leaves the site alone.

        y = op(Q(activation), Q(weight))

    Survey, section 2.3 and eq. 11: Q(theta), Q(h_t), and at the sites `input` and `output`
    Q(x_t) and Q(eps). The weight was quantized before the loop over steps, see `prepare`.
    """
    if inputs is None:
        return op(*operands), None
    values = list(operands)
    if site.weight is not None and inputs.weight is not None:
        values[site.weight] = inputs.weight.astype(values[site.weight].dtype)
    for index, how in zip(site.activations, inputs.activations, strict=False):
        if how is not None:
            values[index] = round_activation(values[index], how)
    return op(*values), None


def round_activation(x, how: ActivationQuant, round_fn: rounding.RoundFn | None = None):
    """Fake-quantize an activation operand [*shape], with the straight-through derivative.

    A `round_fn` takes the place of the rounding that `how` asks for.
    """

    def shaped(value):
        value = jnp.asarray(value)
        return value.reshape((1,) * x.ndim) if value.ndim == 0 else value

    zero_point = None if how.zero_point is None else shaped(how.zero_point)
    args = (x, shaped(how.scale), zero_point, shaped(how.qmin), shaped(how.qmax))
    if round_fn is not None:
        return fake_quant_codes(*args, round_fn=round_fn)
    if how.key is None:
        return fake_quant_codes(*args)
    uniform = jax.random.uniform(how.key, x.shape, jnp.float32)
    round_fn = functools.partial(rounding.stochastic, uniform=uniform)
    return fake_quant_codes(*args, round_fn=round_fn)
