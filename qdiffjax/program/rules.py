"""What can happen at a site: rules are functions (site, op, operands, inputs) -> (y, outputs)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.program.plan import Site
from qdiffjax.program.transform import Rule
from qdiffjax.quant import rounding
from qdiffjax.quant.ste import fake_quant_codes


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
    """Inputs of `quantize` at one site.

    weight: the quantized weight operand, in real units, or None to leave it alone;
    activations: an `ActivationQuant` or None for each activation operand, in order; () for none.
    """

    weight: Any = None
    activations: tuple = ()


def plain(site: Site, op: Callable, operands: tuple, inputs: Any):
    """Run the operation as it is: bit-identical to calling the function, under jit."""
    return op(*operands), None


def quantize(site: Site, op: Callable, operands: tuple, inputs: SiteQuant | None):
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


def perturb(site: Site, op: Callable, operands: tuple, inputs: Any):
    """Add `inputs` to the result of the operation: taps, whose adjoints are sensitivities.

        y = op(*operands) + inputs

    Inputs None leaves the site alone.
    """
    y = op(*operands)
    return (y if inputs is None else y + inputs.astype(y.dtype)), None


def observe(stat_fn: Callable) -> Rule:
    """Rule that leaves the function alone and returns stat_fn(x) of every activation operand."""

    def rule(site, op, operands, inputs):
        return op(*operands), tuple(stat_fn(operands[i]) for i in site.activations)

    return rule


def collect_weights(site: Site, op: Callable, operands: tuple, inputs: Any):
    """Rule that leaves the function alone and returns each site's weight operand."""
    return op(*operands), None if site.weight is None else operands[site.weight]


def collect_operands(site: Site, op: Callable, operands: tuple, inputs: Any):
    """Rule that leaves the function alone and returns each site's operands."""
    return op(*operands), operands


def local_errors(rule: Rule, *, follow_rule: bool) -> Rule:
    """Rule that returns the local error of `rule` at every site.

        r = rule's result - op(*operands), both at the operands that reach this site

    A site without inputs has no error and returns nothing.

    Args:
      rule: the rule whose error is measured, such as `quantize`.
      follow_rule: whether the function goes on with the rule's result (errors along the
        quantized run, a posteriori) or with the plain one (along the plain run, a priori).
    """

    def measured(site, op, operands, inputs):
        if inputs is None:
            return op(*operands), None
        y_rule, _ = rule(site, op, operands, inputs)
        y = op(*operands)
        return (y_rule if follow_rule else y), y_rule - y

    return measured


def gated(rule: Rule) -> Rule:
    """Rule that is `rule` where its input (on, inputs) says so, else plain; `on` may be traced.

    Costs one branch, not two, unless vmapped over `on`.
    """

    def switched(site, op, operands, inputs):
        if inputs is None:
            return op(*operands), None
        on, inner = inputs
        y = jax.lax.cond(
            on, lambda args: rule(site, op, args, inner)[0], lambda args: op(*args), operands
        )
        return y, None

    return switched
