"""Enclose a denoiser and its quantization error on a set of inputs: an interpreter of jaxprs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import _compat
from qdiffjax._checks import check_names, require
from qdiffjax.analysis.certificates import forms, pairs, primitives
from qdiffjax.analysis.certificates.forms import Form
from qdiffjax.analysis.certificates.pairs import Pair
from qdiffjax.labels import Kind, bound
from qdiffjax.precision import Quantized, condition, quantize_site
from qdiffjax.quant import ActivationGrid
from qdiffjax.quant import expand as expand_scale
from qdiffjax.sites.listing import expand, trace
from qdiffjax.sites.plan import CALLS, Plan
from qdiffjax.sites.records import Site

BODIES = {**CALLS, "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}


@bound(
    Kind.CERTIFIED,
    "every x of the set, every outcome of every rounding; real arithmetic of both networks",
)
def enclose(q: Quantized, x: Pair | Form, t, *, max_symbols: int = 4096) -> Pair:
    """Enclose eps(x, t) and eps_hat(x_hat, t) - eps(x, t) for every x of a set.

    Certified: contains, in real arithmetic, both values for every x in the set and every outcome
    of every rounding of the activations within its bound (step / 2 to nearest, step if
    stochastic). Float rounding of the networks' own programs is not part of it. A pure function
    of arrays, to be jitted, and vmapped over boxes.

    Args:
      q: the two denoisers; its rule must be `rules.quantize`.
      x: the inputs, `forms.box(low, high)` [batch, *shape]; a pair if the quantized run's differ.
      t: scalar time, known exactly.
      max_symbols: roundings of the activations keep track of their origin until there are this many
        symbols; the others are intervals. Zero, and no gens in x, is interval arithmetic.

    Returns:
      The pair (eps, eps_hat - eps) [batch, *shape]; read it with `forms.bounds`.

    Raises:
      RuntimeError: float64 is off.
      NotImplementedError: a primitive without a rule, a loop of unknown length.
      TypeError, ValueError: another rule than `quantize_site`; inputs for what is no site.
    """
    _check(q)
    x = x if isinstance(x, Pair) else Pair(x)
    dtype = _float_dtype(q.params)
    as_t = jax.ShapeDtypeStruct(jnp.shape(t), dtype)
    cond = condition(q, x)
    traced = trace(q.eps_fn, (q.params, jax.ShapeDtypeStruct(x.shape, dtype), as_t, *cond))
    check_names("site_inputs", q.site_inputs, [s.name for s in traced.sites for s in expand(s)])
    first = max(len(x.z), len(x.difference))
    walk = Walk(q.site_inputs, first, max_symbols)
    edges = traced.edges
    x = walk.at_edge(edges["input"], x) if "input" in edges else x
    known = [primitives.wide(v) for v in jax.tree.leaves(q.params)]
    consts = [primitives.wide(v) for v in traced.consts]
    inputs = [*consts, *known, x, primitives.wide(jnp.asarray(t)),
              *map(primitives.wide, jax.tree.leaves(cond))]  # fmt: skip
    results = walk.run(traced.jaxpr, traced.plan, inputs)
    out = pairs.as_pair(results[0])
    out = walk.at_edge(edges["output"], out) if "output" in edges else out
    return Pair(forms.settle(out.z), forms.settle(out.difference))


def _check(q: Quantized) -> None:
    if not jax.config.read("jax_enable_x64"):
        raise RuntimeError(
            "got JAX without float64, in which certificates compute; run them under "
            "`with jax.enable_x64(True):`"
        )
    require(
        q.rule is quantize_site,
        got=f"the rule {q.rule}",
        expected="quantize_site, which is enclosed here",
        error=TypeError,
        remedy="quantize(calibration, recipe) in place of lower",
    )


def _float_dtype(params):
    """Dtype of the first real parameter: what the network expects x to be."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    return next((d for d in dtypes if jnp.issubdtype(d, jnp.floating)), jnp.dtype(jnp.float32))


@dataclasses.dataclass
class Walk:
    """One walk through a jaxpr; counts the symbols it hands out.

    Attributes:
      site_inputs: `SiteQuant` by name.
      count: number of the next symbol.
      max_symbols: how many there may be.
    """

    site_inputs: dict[str, Any]
    count: int
    max_symbols: int

    def run(self, jaxpr, plan: Plan | None, args, index: tuple[int, ...] = ()) -> list:
        """Evaluate a planned jaxpr; `index` counts the iterations of the scans around it."""
        env: dict[Any, Any] = {}

        def read(atom):
            # Literals stay NumPy's: rules may ask for their values while tracing.
            if isinstance(atom, _compat.Literal):
                return primitives.wide(np.asarray(atom.val))
            return env[atom]

        env.update(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))
        entries = [None] * len(jaxpr.eqns) if plan is None else plan.entries
        for eqn, entry in zip(jaxpr.eqns, entries, strict=True):
            values = [read(v) for v in eqn.invars]
            if isinstance(entry, Site):
                results = self.at_site(eqn, entry, values, index)
            elif eqn.primitive.name == "scan":
                results = self.scan(eqn, entry, values, index)
            elif eqn.primitive.name in BODIES:
                inner, consts = _compat.open_jaxpr(eqn.params[BODIES[eqn.primitive.name]])
                consts = [primitives.wide(c) for c in consts]
                results = self.run(inner, entry, [*consts, *values], index)
            else:
                results = self.plain(eqn, values)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def scan(self, eqn, plan, values, index) -> list:
        """Unroll a scan."""
        p = eqn.params
        num_consts, num_carry = _compat.scan_counts(p)
        inner, closed = _compat.open_jaxpr(p["jaxpr"])
        consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
        closed = [primitives.wide(c) for c in closed]
        xs = values[num_consts + num_carry :]
        stacked: list[list] = [[] for _ in range(len(eqn.outvars) - num_carry)]
        order = range(p["length"])
        for i in reversed(order) if p["reverse"] else order:
            slices = [_index(x, i) for x in xs]
            out = self.run(inner, plan, [*closed, *consts, *carry, *slices], (*index, i))
            carry = out[:num_carry]
            for column, y in zip(stacked, out[num_carry:], strict=True):
                column.append(y)
        if p["reverse"]:
            stacked = [column[::-1] for column in stacked]
        return [*carry, *(_stack(column) for column in stacked)]

    def at_edge(self, site: Site, value: Pair) -> Pair:
        """The site `input` or `output`."""
        how = self.site_inputs.get(site.name)
        if how is not None:
            how.check_plain(site)
        return value if not how or not how.activations else self.round(value, how.activations[0])

    def at_site(self, eqn, site: Site, values, index) -> list:
        """A product, a mark or a stored value, quantized as `rules.quantize` does it."""
        how = self.site_inputs.get(site.name + "".join(f"[{i}]" for i in index))
        if how is None:
            return self.plain(eqn, values) if site.is_value else primitives.apply(eqn, values)
        how.check_plain(site)
        values = self.plain(eqn, values) if site.is_result else list(values)
        for i, grid in zip(site.activations, how.activations, strict=False):
            values[i] = self.round(pairs.as_pair(values[i]), grid)
        if site.kind == "mark" or site.is_result:
            return values
        if site.is_value:
            return self.plain(eqn, values)
        op, length = primitives.product_op(eqn), primitives.product_length(eqn)
        w = site.weight
        if w is None or how.weight is None:
            return [pairs.multiply(op, *values, length=length)]
        weight_hat = primitives.wide(jnp.asarray(how.weight))
        activation = pairs.as_pair(values[1 - w])
        ordered = op if w == 1 else (lambda a, b: op(b, a))
        if not isinstance(values[w], Pair):
            return [pairs.times_weight(ordered, activation, values[w], weight_hat, length=length)]
        change = forms.subtract(forms.exactly(weight_hat), values[w].z)
        weight = Pair(values[w].z, change)
        return [pairs.multiply(ordered, activation, weight, length=length)]

    def plain(self, eqn, values) -> list:
        """The results of an equation that is not quantized."""
        return [self.name_errors(r, eqn) for r in primitives.apply(eqn, values)]

    def name_errors(self, value, eqn):
        """Give the errors of a nonlinear operation symbols, which cancel where they meet again."""
        if eqn.primitive.name not in primitives.NONLINEAR or not isinstance(value, Pair):
            return value
        z = self.symbolize(value.z)
        return Pair(z, None if value.dz is None else self.symbolize(value.dz))

    def symbolize(self, form: Form) -> Form:
        """Turn rad into symbols, if there may be so many more."""
        num = int(np.prod(form.shape))
        if self.count + num > self.max_symbols:
            return form
        self.count += num
        return forms.symbolize(form, self.count - num)

    def round(self, value: Pair, grid: ActivationGrid | None) -> Pair:
        """Round one operand to its grid."""
        if grid is None:
            return value
        require(grid.scale is not None, "certificate", got="a dynamic grid of activations",
                expected="static ones, the same for all inputs",
                remedy="precision.quantize(..., activations='static')")  # fmt: skip
        zero = 0.0 if grid.zero_point is None else grid.zero_point
        scale, zero, qmin, qmax = (
            _shaped(v, value.shape) for v in (grid.scale, zero, grid.format.low, grid.format.high)
        )
        low, high = scale * (qmin - zero), scale * (qmax - zero)
        error = pairs.rounding_error(value, scale, low, high, is_random=grid.key is not None)
        return Pair(value.z, forms.add(value.difference, self.symbolize(error)))


def _shaped(field, shape):
    """A grid's field as float64 that broadcasts against the operand."""
    field = jnp.asarray(field).astype(jnp.float64)
    return field if field.ndim == 0 else expand_scale(field, shape)


def _index(value, i: int):
    if isinstance(value, Pair):
        return pairs.each(lambda f: forms.move(lambda v: v[i], f), value)
    return value[i]


def _stack(column: list):
    if not any(isinstance(v, Pair) for v in column):
        return jnp.stack(column)
    return pairs.each(
        lambda *fs: forms.move(lambda *vs: jnp.stack(vs), *fs), *map(pairs.as_pair, column)
    )
