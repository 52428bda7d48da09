"""Run a function under a rule: the one interpreter behind every reading of a denoiser."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import _compat
from qdiffjax._checks import check_names, require
from qdiffjax.sites import absent
from qdiffjax.sites.listing import Traced, expand, trace
from qdiffjax.sites.plan import CALLS, Plan
from qdiffjax.sites.records import Site

# rule(site, op, operands, inputs) -> (result, outputs): `op(*operands)` is the operation itself,
# `inputs` what the caller passed for this site (or None), `outputs` what the caller gets back.
Rule = Callable[[Site, Callable, tuple, Any], tuple[Any, Any]]


def transform(fn, rule: Rule):
    """Return g(*args, site_inputs=None) -> (out, site_outputs): fn with `rule` at every site.

    Args:
      fn: eps_fn(params, x, t, ...), of any framework; it is traced, never edited.
      rule: what happens at a site, see `sites.rules`.

    Returns:
      g, a pure function of arrays. `site_inputs` maps names of sites to pytrees of arrays;
      `site_outputs` maps names to what the rule returned, where that is not None. g retraces fn
      when called, as jit does for new shapes; call it under jit.

    Raises (when called):
      ValueError: a name in `site_inputs` is no site; names the nearest.
    """

    def transformed(*args, site_inputs=None):
        traced = trace(fn, args)
        inputs = _stack_loops(traced, dict(site_inputs or {}))
        edges = traced.edges
        outputs: dict[str, Any] = {}

        def at_edge(name, value):
            if name not in edges:
                return value
            y, out = rule(edges[name], _same, (value,), inputs.get(name))
            if out is not None:
                outputs[name] = out
            return y

        leaves = absent.leaves((args[0], at_edge("input", _as_array(args[1])), args[2:]))
        results = _evaluate(traced.jaxpr, traced.plan, [*traced.consts, *leaves], rule, inputs,
                            outputs)  # fmt: skip
        absent.check_present("output", results)
        results[:1] = [at_edge("output", value) for value in results[:1]]
        return jax.tree.unflatten(traced.out_tree, results), _unstack_loops(traced, outputs)

    return transformed


def _as_array(value):
    return jnp.asarray(jax.tree.leaves(value)[0])


def _evaluate(jaxpr, plan: Plan, args, rule, inputs, outputs: dict) -> list:
    """Evaluate a planned jaxpr on the values of its constants and inputs; fills `outputs`."""
    env: dict[Any, Any] = {}

    def read(atom):
        return atom.val if isinstance(atom, _compat.Literal) else env[atom]

    env.update(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))
    for eqn, entry in zip(jaxpr.eqns, plan.entries, strict=True):
        values = [read(v) for v in eqn.invars]
        if entry is None:
            missing = any(map(absent.is_absent, values))
            results = absent.results(eqn) if missing else _compat.bind(eqn, values)
        elif isinstance(entry, Site):
            results = [_at_site(eqn, entry, values, rule, inputs, outputs)]
        else:
            results, own = _call(eqn, entry, values, rule, inputs)
            outputs.update(own)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _at_site(eqn, site: Site, values, rule, inputs, outputs: dict):
    def run(*operands):
        absent.check_present(site.name, operands)
        return _compat.bind(eqn, list(operands))[0]

    op: Callable = run
    if site.is_result:  # it is made as it is, and what the rule sees is made
        values, op = [run(*values)], _same
    absent.check_present(site.name, [values[i] for i in site.activations])
    result, out = rule(site, op, tuple(values), inputs.get(site.name))
    if out is not None:
        outputs[site.name] = out
    return result


def _same(value):
    return value


def _call(eqn, plan: Plan, values, rule, inputs) -> tuple[list, dict]:
    """Evaluate an equation that holds a jaxpr; returns its results and its sites' outputs."""
    own = {s.name: inputs[s.name] for s in plan.sites() if s.name in inputs}
    if eqn.primitive.name == "scan":
        return _scan(eqn, plan, values, rule, own)
    inner, consts = _compat.open_jaxpr(eqn.params[CALLS[eqn.primitive.name]])

    def body(own, values):
        outputs: dict[str, Any] = {}
        return _evaluate(inner, plan, [*consts, *values], rule, own, outputs), outputs

    if eqn.primitive.name in ("checkpoint", "remat", "remat2"):
        prevent_cse, policy = eqn.params["prevent_cse"], eqn.params["policy"]
        body = jax.checkpoint(body, prevent_cse=prevent_cse, policy=policy)
    return body(own, values)


def _scan(eqn, plan: Plan, values, rule, inputs) -> tuple[list, dict]:
    params = eqn.params
    num_consts, num_carry = _compat.scan_counts(params)
    inner, closed = _compat.open_jaxpr(params["jaxpr"])
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]

    def body(carry, slices):
        xs, own = slices
        outputs: dict[str, Any] = {}
        args = [*closed, *consts, *carry, *absent.sliced(xs)]
        results = _evaluate(inner, plan, args, rule, own, outputs)
        return results[:num_carry], (results[num_carry:], outputs)

    carry, (ys, outputs) = jax.lax.scan(
        body, carry, (values[num_consts + num_carry :], inputs),
        length=params["length"], reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    return [*carry, *ys], outputs


def _stack_loops(traced: Traced, site_inputs: dict) -> dict:
    """Gather what the caller passed per iteration into arrays that scans can slice."""
    names = [s.name for t in traced.sites for s in expand(t)]
    check_names("site_inputs", site_inputs, names)
    stacked = {}
    for template in traced.sites:
        inputs = [site_inputs[s.name] for s in expand(template) if s.name in site_inputs]
        if not inputs:
            continue
        num = math.prod(template.loops)
        require(
            len(inputs) == num, "site_inputs", got=f"{len(inputs)} of {template.name}",
            expected=f"all {num} iterations or none, for a scan",
            remedy="give the others neutral values",
        )  # fmt: skip
        stacked[template.name] = _stack(inputs, template.loops)
    return stacked


def _stack(values: list, loops: tuple[int, ...]):
    if not loops:
        return values[0]
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves).reshape(*loops, *jnp.shape(leaves[0])), *values
    )


def _unstack_loops(traced: Traced, outputs: dict) -> dict:
    result = {}
    for template in traced.sites:
        if template.name not in outputs:
            continue
        if not template.loops:
            result[template.name] = outputs[template.name]
            continue
        indices = itertools.product(*(range(n) for n in template.loops))
        for site, index in zip(expand(template), indices, strict=True):
            result[site.name] = jax.tree.map(lambda leaf, i=index: leaf[i], outputs[template.name])
    return result
