"""What can happen at a site: rules are functions (site, op, operands, inputs) -> (y, outputs)."""

from collections.abc import Callable
from typing import Any

import jax

from qdiffjax.sites.records import Site
from qdiffjax.sites.transforming import Rule


def plain(site: Site, op: Callable, operands: tuple, inputs: Any):
    """Run the operation as it is: bit-identical to calling the function, under jit."""
    return op(*operands), None


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


def local_errors(rule: Rule, *, follow_rule: bool, keep_outputs: bool = False) -> Rule:
    """Rule that returns the local error of `rule` at every site.

        r = rule's result - op(*operands), both at the operands that reach this site

    A site without inputs has no error and returns nothing.

    Args:
      rule: the rule whose error is measured, such as `precision.quantize_site`.
      follow_rule: whether the function goes on with the rule's result (errors along the
        quantized run, a posteriori) or with the plain one (along the plain run, a priori).
      keep_outputs: return (r, the rule's own outputs).
    """

    def measured(site, op, operands, inputs):
        if inputs is None:
            return op(*operands), None
        y_rule, outputs = rule(site, op, operands, inputs)
        y = op(*operands)
        error = (y_rule - y, outputs) if keep_outputs else y_rule - y
        return (y_rule if follow_rule else y), error

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
