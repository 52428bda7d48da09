"""Roundings of weights learned from what the network predicts, block by block.

    min over V_block of  E |eps_hat(x, t; h(V)) - eps(x, t)|^2 / E |eps_nearest - eps|^2
                         + weight * mean(1 - |2 h(V) - 1|^beta)

Other cures of weights look at one product at a time. Here the error that counts is that of the
prediction, at the states of the sampler, with the activations rounded as they will be.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import precision, quant
from qdiffjax._checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check_count,
    check_names,
    checked,
    require,
)
from qdiffjax._typing import float_dtype
from qdiffjax.precision import Quantized
from qdiffjax.precision.quantized import merge, ruled_call
from qdiffjax.precision.shaping import site_key
from qdiffjax.sites import Site
from qdiffjax.strategies.descent import adam
from qdiffjax.strategies.drafts import ROUND, Cure, Draft
from qdiffjax.strategies.grids import Grid
from qdiffjax.strategies.weights import check_codes, single_grids

BLOCKS, NETWORK = "block", "network"
Rounding = dict[str, jax.Array]


def block_of(name: str) -> str:
    """Return the block of a site: its path without the last two parts, at most two deep."""
    parts = name.split("/")
    return "/".join((parts[:-2] or parts[:1])[:2])


@checked(num_steps=check_count, batch=check_count, learning_rate=POSITIVE, weight=NOT_NEGATIVE,
         drop=SHARE)  # fmt: skip
def reconstruction(
    num_steps: int = 300,
    *,
    unit: str = BLOCKS,
    batch: int = 16,
    drop: float = 0.0,
    learning_rate: float = 0.03,
    weight: float = 3.0,
) -> Cure:
    """Return the cure that learns how the weights of each block round, from the prediction.

    BRECQ (Li et al. 2021) and, for diffusion, Q-Diffusion (Li et al. 2023): blocks in their order,
    those before already rounded, activations rounded as in the recipe. They take the error of the
    block's result, weighted by the Fisher information that stands for what it does to the loss;
    here that is the error of the prediction itself, which a network of this size can afford. With
    `drop` some of the activations' roundings are left out at random, QDrop (Wei et al. 2022). What
    is not better than before on the states, first the default of the recipe, is not taken.

    Args:
      num_steps: optimizer steps (Adam) for each block.
      unit: "block", see `block_of`, or "network": all weights at once.
      batch: samples of a step, drawn from the states of one call.
      drop: share of the activations' numbers that stay as they are in a step; 0.5 in QDrop.
      learning_rate: of the logits.
      weight: of the regularizer, which decides by the end.
    """
    check_names("unit", (unit,), (BLOCKS, NETWORK))

    def grids_of(draft: Draft) -> dict[str, Grid]:
        grids = single_grids(draft, draft.rounds_weight())
        require(grids, "reconstruction", got="no weight that is rounded", expected="one",
                remedy="a recipe such as W4A8")  # fmt: skip
        check_codes(grids)
        return grids

    def apply(draft: Draft) -> Draft:
        grids = grids_of(draft)
        q = draft.at_samples()
        blocks = {name: block_of(name) if unit == BLOCKS else NETWORK for name in grids}
        order = list(dict.fromkeys(blocks.values()))
        learner = _learner(draft, q, grids, batch, drop, learning_rate, weight, num_steps)
        rounded: Rounding = {name: q.site_inputs[name].weight for name in grids}
        key = jax.random.fold_in(draft.key, 2)
        for number, block in enumerate(order):
            active = {name: jnp.asarray(blocks[name] == block) for name in grids}
            rounded = learner(rounded, active, jax.random.fold_in(key, number))
        done = dataclasses.replace(draft, rounded={**draft.rounded, **rounded})
        # A step is a batch with its gradient; targets and the error of nearest are two passes.
        cost = 3 * batch * num_steps * len(order) + 2 * draft.states.num * (1 + len(order))
        return done.billed(evaluations=cost, optimizer_steps=num_steps * len(order))

    name = {BLOCKS: "block reconstruction", NETWORK: "network reconstruction"}[unit]
    return Cure(f"{name}{' with drop' if drop else ''}", ROUND, apply, grids_of)


def _learner(
    draft: Draft,
    q: Quantized,
    grids: dict[str, Grid],
    batch: int,
    drop: float,
    learning_rate: float,
    weight: float,
    num_steps: int,
) -> Callable[[Rounding, dict[str, Any], Any], Rounding]:
    """Return (rounded, active, key) -> rounded, with the active weights learned; compiled once."""
    states, num = draft.states, draft.states.x.shape[1]
    batch = min(batch, num)
    rule = _dropping(q.rule, drop) if drop else q.rule
    calls = q.calls(draft.steps)

    def prediction(q, rounded, state, key):
        inputs = {name: each._replace(weight=rounded[name]) if name in rounded else each
                  for name, each in q.site_inputs.items()}  # fmt: skip
        own = jax.tree.map(lambda a: jnp.asarray(a)[state.call], calls)
        inputs = merge(inputs, own)
        if drop:
            inputs = {name: (each, site_key(key, name)) for name, each in inputs.items()}
        return _eps(ruled_call(q, rule), state, inputs)

    def soft(name, logits, hard=False):
        g = grids[name]
        return quant.fake_quant_adaround(g.w, g.scale, logits, g.zero_point, format=g.format,
                                         hard=hard)  # fmt: skip

    @jax.jit
    def learn(q, rounded, active, key, states):
        first = {name: quant.adaround_init(grid.w, grid.scale) for name, grid in grids.items()}
        targets = jax.lax.map(lambda s: _eps(precision.full_call(q), s, None), states)

        def errors(rounded):
            def one(s, target):
                plain = {n: e._replace(weight=rounded[n]) if n in rounded else e
                         for n, e in q.site_inputs.items()}  # fmt: skip
                own = jax.tree.map(lambda a: jnp.asarray(a)[s.call], calls)
                eps = _eps(ruled_call(q, q.rule), s, merge(plain, own))
                return jnp.mean((eps - target) ** 2)

            return jnp.mean(jax.lax.map(lambda pair: one(*pair), (states, targets)))

        before = errors(rounded)

        def mixed(logits):
            return {name: jnp.where(active[name], soft(name, logits[name]), rounded[name])
                    for name in grids}  # fmt: skip

        def loss(logits, step, key):
            keys = jax.random.split(key, 3)
            place = jax.random.randint(keys[0], (), 0, states.x.shape[0])
            rows = jax.random.permutation(keys[1], num)[:batch]
            state = jax.tree.map(lambda a: a[place], states)
            state = state._replace(x=state.x[rows])
            eps = prediction(q.at(rows), mixed(logits), state, keys[2])
            error = jnp.mean((eps - targets[place][rows]) ** 2) / before
            on, beta = quant.adaround_schedule(step, num_steps)
            price = jnp.sum(jnp.stack([
                jnp.where(active[n], quant.adaround_regularizer(v, beta), 0)
                for n, v in logits.items()
            ]))  # fmt: skip
            size = sum(jnp.where(active[n], float(grids[n].w.size), 0.0) for n in grids)
            return error + ((on * weight).astype(price.dtype) * price / size).astype(error.dtype)

        own = lambda logits, step: loss(logits, step, jax.random.fold_in(key, step))  # noqa: E731
        logits = adam(own, first, num_steps, learning_rate)
        done = {name: jnp.where(active[name], soft(name, logits[name], hard=True), rounded[name])
                for name in grids}  # fmt: skip
        is_better = errors(done) < before
        return {name: jnp.where(is_better, done[name], rounded[name]) for name in grids}

    return lambda rounded, active, key: learn(q, rounded, active, key, states)


def _eps(call, state, inputs):
    out = call(state.x, state.t, inputs)[0]
    return out.astype(float_dtype(out))


def _dropping(rule, drop: float):
    """Return the rule that leaves a random share of the activations' numbers unrounded.

    Its inputs are (those of the rule, a key).
    """

    def dropped(site: Site, op, operands, inputs):
        if inputs is None:
            return op(*operands), None
        own, key = inputs
        exact = list(operands)
        if own.around is not None and own.around.bases:
            for index in site.activations:
                axis = precision.group_axis(site, index)
                exact[index] = own.around.enter(exact[index], axis, own.call)

        def some(*values):
            mixed = list(values)
            for place, index in enumerate(site.activations):
                keep = jax.random.bernoulli(
                    jax.random.fold_in(key, place), drop, exact[index].shape
                )
                mixed[index] = jnp.where(keep, exact[index], mixed[index])
            return op(*mixed)

        return rule(site, some, operands, own)

    return dropped
