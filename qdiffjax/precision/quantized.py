"""A denoiser beside its low-precision self: what the analysis compares."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array, CallFn, EpsFn, Key, float_dtype
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import Steps, sample
from qdiffjax.precision.noise_marks import NoiseMarks
from qdiffjax.precision.printing import quantized_table
from qdiffjax.precision.rules import SiteQuant, quantize_site, remembered
from qdiffjax.precision.settings import Settings
from qdiffjax.sites import rules
from qdiffjax.sites.absent import absent_like, is_absent
from qdiffjax.sites.listing import expand, trace
from qdiffjax.sites.naming import parameter_names
from qdiffjax.sites.transforming import Rule, transform


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Quantized:
    """A denoiser and what a rule needs to run it in low precision; a pytree, so jit takes it.

    Two that differ in bits, scales or weights share one compilation.

    Attributes:
      denoiser: in full precision; its `cond` is that of the samples at hand.
      site_inputs: inputs of the rule at each site, by name; sites not named stay plain.
      rule: what happens at the sites; static.
      widths: what the recipe said, `SiteBits` of integers by site, to be read only; None if it is
        not known.
      settings: what was chosen, in words, to be printed; static, and ignored by compilations.
      noise: marks of the noises that it was calibrated or chosen on; as settings.
      memory_dtype: type of what calls hand on, see `start`, None for that of the operands; static.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> list(q.site_inputs)  # neither the edges nor the last layer
      ['in']
    """

    denoiser: Denoiser
    site_inputs: dict[str, Any]
    rule: Rule = dataclasses.field(default=quantize_site, metadata={"static": True})
    widths: dict[str, Any] | None = None
    settings: Settings = dataclasses.field(default=Settings(), metadata={"static": True})
    noise: NoiseMarks = dataclasses.field(default=NoiseMarks(), metadata={"static": True})
    memory_dtype: Any = dataclasses.field(default=None, metadata={"static": True})

    def __repr__(self):
        return str(quantized_table(self))

    def _repr_html_(self) -> str:
        return quantized_table(self)._repr_html_()

    @property
    def eps_fn(self) -> EpsFn:
        """The denoiser as (params, x [batch, *shape], t [], cond=None) -> eps."""
        return self.denoiser.eps_fn

    @property
    def params(self) -> Any:
        """The full-precision parameters."""
        return self.denoiser.params

    @property
    def cond(self) -> Any:
        """Conditions of the samples at hand, leaves [batch, ...], or None."""
        return self.denoiser.cond

    def given(self, cond) -> "Quantized":
        """Return it with the conditions of other samples, leaves [batch, ...]."""
        return dataclasses.replace(self, denoiser=dataclasses.replace(self.denoiser, cond=cond))

    def with_params(self, params) -> "Quantized":
        """Return it with other full-precision parameters; quantized weights stay as they are."""
        return dataclasses.replace(self, denoiser=dataclasses.replace(self.denoiser, params=params))

    def calls(self, steps: Steps, per_call: Any = None) -> Any:
        """Return the `per_call` of a sampler, leaves [N, ...]: what varies from call to call.

        The number of the call, at sites whose rounding depends on it, under what `per_call` holds
        already; None if there is nothing.

        Raises:
          ValueError: a recipe by step for a sampler with another number of calls.
        """
        numbers = np.arange(len(steps.t))
        needing = {name: inputs for name, inputs in self.site_inputs.items()
                   if isinstance(inputs, SiteQuant) and inputs.needs_call}  # fmt: skip
        for name, inputs in needing.items():
            for num in inputs.lengths:
                require(num == len(numbers), f"{name}, recipe by step",
                        got=f"a sampler of {len(numbers)} calls", expected=f"one of {num}",
                        remedy="calibrate and quantize with this sampler")  # fmt: skip
        return (
            merge({n: SiteQuant(call=numbers) for n in needing}, per_call) if needing else per_call
        )

    def start(self, x_T) -> Any:
        """Return the `state` that a sampler from x_T [batch, *shape] begins with.

        Zeros {site: ([operand's shape] or None, ...)} where activations are rounded with memory of
        earlier calls: what feedback still owes, what a difference is taken to; () where none are.
        """
        memories = remembered(self.site_inputs)
        if not memories:
            return ()
        x = jax.ShapeDtypeStruct(jnp.shape(x_T), float_dtype(x_T))
        call, t = ruled_call(self, rules.observe(lambda x: x)), jax.ShapeDtypeStruct((), x.dtype)
        operands = jax.eval_shape(lambda x, t: call(x, t)[1], x, t)
        return {
            name: tuple(jnp.zeros(x.shape, self.memory_dtype or x.dtype) if on else None
                        for x, on in zip(operands[name], flags, strict=False))
            for name, flags in memories.items()
        }  # fmt: skip

    def at(self, index) -> "Quantized":
        """Return it with the conditions of some of its samples, an index or slice of them."""
        return dataclasses.replace(self, denoiser=self.denoiser.at(index))


def drop_weights(q: Quantized, x, t) -> Quantized:
    """Return q without the parameters that only its quantized weights stand for.

    They become `Absent`, shapes without arrays: neither kept in memory nor arguments of what is
    compiled. What else reads a parameter keeps it: a bias, a gain, a site that q leaves plain.

    Args:
      q: a denoiser whose rule never reads the weight operand of a site that has its own, as
        `lower_site` and `quantize_site`.
      x, t: example arguments, or their shapes.
    """
    traced = trace(q.eps_fn, (q.params, x, t, *condition(q, x)))
    replaced = {
        s.name
        for s in traced.sites
        if all(_has_weight(q.site_inputs.get(each.name)) for each in expand(s))
    }
    needed = [paths for reader, paths in traced.uses if reader not in replaced]
    unread = frozenset().union(*(paths for _, paths in traced.uses)).difference(*needed)
    leaves, tree = jax.tree.flatten(q.params, is_leaf=is_absent)
    names = parameter_names(q.params, is_leaf=is_absent)
    kept = [
        absent_like(leaf) if name in unread else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return q.with_params(jax.tree.unflatten(tree, kept))


def _has_weight(inputs) -> bool:
    return isinstance(inputs, SiteQuant) and inputs.weight is not None


def full_call(q: Quantized) -> CallFn:
    """Return call_fn(x, t, inputs, state) of the full-precision denoiser, without outputs.

    Inputs and state pass it by.
    """
    eps_fn = q.eps_fn

    def call(x, t, inputs=None, state=()):
        return eps_fn(q.params, x, t, *condition(q, x)), None, state

    return call


def final_samples(
    q: Quantized, x_T, steps: Steps, key: Key | None = None, *, in_full: bool = False
) -> Array:
    """Return where the sampler ends [batch, *shape], in low precision or in full.

    Args:
      q: the denoiser, of the conditions of these samples.
      x_T: initial noise [batch, *shape].
      steps: the sampler; key: of its own noise, None where it adds none.
      in_full: run the full-precision denoiser.

    Raises:
      ValueError: as `diffusion.sample` and `Quantized.calls`.
    """
    call = full_call(q) if in_full else quantized_call(q)
    own = {} if in_full else {"per_call": q.calls(steps), "state": q.start(x_T)}
    return sample(call, x_T, steps, key=key, keep_trajectory=False, **own).x_0


def condition(q: Quantized, x) -> tuple:
    """Return (cond,) of the samples x [batch, *shape], or () if the denoiser takes none.

    Raises:
      ValueError: conditions of another number of samples.
    """
    if q.cond is None:
        return ()
    require(not callable(q.cond), "cond", got="a function", expected="those of the samples",
            remedy="q.given(denoiser.draw_cond(key, num))")  # fmt: skip
    for leaf in jax.tree.leaves(q.cond):
        require(leaf.shape[0] == x.shape[0], "cond", got=f"{leaf.shape[0]} entries",
                expected=f"one for each of {x.shape[0]} samples",
                remedy="q.given(cond) or q.at(slice)")  # fmt: skip
    return (q.cond,)


def ruled_call(q: Quantized, rule: Rule) -> CallFn:
    """Return call_fn(x, t, inputs, state) of the denoiser under a rule: inputs, outputs by site."""
    g = transform(q.eps_fn, rule)

    def call(x, t, inputs=None, state=()):
        return *g(q.params, x, t, *condition(q, x), site_inputs=inputs), state

    return call


def quantized_call(q: Quantized) -> CallFn:
    """Return call_fn(x, t, inputs, state) of the low-precision denoiser.

    `inputs` (None or a dict by site) overrides what `q` holds for this call: formats, scales
    and masks by (site, step) arrive here, one slice of the sampler's `per_call` at a time. The
    state holds the residuals of operands that are rounded with feedback, see `Quantized.start`.
    """
    call = ruled_call(q, q.rule)

    def call_fn(x, t, inputs=None, state=()):
        eps, residuals, _ = call(x, t, with_residuals(merge(q.site_inputs, inputs), state))
        return eps, None, handed_on(state, residuals)

    return call_fn


def recording_call(q: Quantized, *, follow_rule: bool = True) -> CallFn:
    """Return `quantized_call` with the local error of every site as outputs.

    See `sites.rules.local_errors`; without `follow_rule` it returns what full precision predicts,
    and errors at the operands that full precision has.
    """
    call = ruled_call(q, rules.local_errors(q.rule, follow_rule=follow_rule, keep_outputs=True))

    def call_fn(x, t, inputs=None, state=()):
        eps, outputs, _ = call(x, t, with_residuals(merge(q.site_inputs, inputs), state))
        errors = {name: error for name, (error, _) in outputs.items()}
        return eps, errors, handed_on(state, {n: kept for n, (_, kept) in outputs.items()})

    return call_fn


def with_residuals(site_inputs: dict[str, Any], state: Any) -> dict[str, Any]:
    """Return site inputs with the residuals that a call is handed."""
    if not state:
        return site_inputs
    kept = {name: site_inputs[name]._replace(residuals=residuals)
            for name, residuals in state.items() if name in site_inputs}  # fmt: skip
    return site_inputs | kept


def handed_on(state: Any, residuals: dict[str, Any] | None) -> Any:
    """Return the state after a call that left these residuals at its sites, of its own types."""
    if not state:
        return state
    left = {name: new for name, new in (residuals or {}).items()
            if new is not None and name in state}  # fmt: skip
    kept = {name: state[name] for name in left}
    return state | jax.tree.map(lambda new, old: new.astype(old.dtype), left, kept)


def merge(base: dict[str, Any], override: dict[str, Any] | None) -> dict[str, Any]:
    """Site inputs of a call: `override` replaces those of its sites, field by field if not None."""
    merged = dict(base)
    for name, new in (override or {}).items():
        old = base.get(name)
        if isinstance(new, SiteQuant) and isinstance(old, SiteQuant):
            weight = old.weight if new.weight is None else new.weight
            call = old.call if new.call is None else new.call
            around = old.around if new.around is None else new.around
            new = SiteQuant(weight, new.activations or old.activations, call,
                            new.residuals or old.residuals, around)  # fmt: skip
        merged[name] = new
    return merged


def gated_call(q: Quantized) -> CallFn:
    """Return call_fn(x, t, on, state): low precision only where `on` says so.

    `on` maps names of sites to booleans, which may be traced; sites not named are off. With
    leading axis [num_calls] it is the sampler's `per_call`: any (site, step) cells can be
    switched, in one compilation.
    """
    call = ruled_call(q, rules.gated(q.rule))

    def call_fn(x, t, on=None, state=()):
        inputs = {name: (on[name], q.site_inputs[name]) for name in on or {}}
        eps, _, state = call(x, t, inputs, state)
        return eps, None, state

    return call_fn
