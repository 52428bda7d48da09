"""Several recipes of one denoiser in one program: which one a sample takes at a step is data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, checked, require
from qdiffjax._typing import Array, Key, PyTree, float_dtype
from qdiffjax.diffusion import Steps, Trajectory, sample
from qdiffjax.precision import NoiseMarks, Quantized, alike, quantized_call
from qdiffjax.precision.refusals import check_quantized
from qdiffjax.precision.rules import remembered

# (slices of a call, held, x [batch, *shape], eps of the call before) -> (index, held, outputs)
DecideFn = Callable[[PyTree, PyTree, Array, Array], tuple[Array, PyTree, PyTree]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """K recipes of one denoiser as one pytree: `at(k)` is the k-th, and k may be traced.

    Attributes:
      first: the recipe 0, in the structure that all share; it has their marks of noises.
      varying: leaves of its site inputs that differ between recipes [K, ...].
      places: where those are among the leaves; static.
    """

    first: Quantized
    varying: tuple[Any, ...]
    places: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def at(self, index) -> Quantized:
        """Return the recipe of a number, which may be traced."""
        leaves, tree = jax.tree.flatten(self.first.site_inputs)
        for place, leaf in zip(self.places, self.varying, strict=True):
            leaves[place] = leaf[index]
        return dataclasses.replace(self.first, site_inputs=jax.tree.unflatten(tree, leaves))

    def given(self, cond) -> "Stack":
        """Return it with the conditions of other samples, leaves [batch, ...], or None."""
        return dataclasses.replace(self, first=self.first.given(cond))

    def marked(self, noise: NoiseMarks) -> "Stack":
        """Return it with marks of noises that it was fitted to besides."""
        first = dataclasses.replace(self.first, noise=self.first.noise | noise)
        return dataclasses.replace(self, first=first)

    def predict(self, index, x, t, inputs=None) -> Array:
        """Return eps [batch, *shape] of a call, each sample by its own recipe.

        Args:
          index: of the recipe of each sample, integers [batch].
          x: the samples [batch, *shape]; t: the time [].
          inputs: what varies from call to call, see `Quantized.calls`.
        """

        def one(index, x, cond):
            own = self.at(index).given(jax.tree.map(lambda leaf: leaf[None], cond))
            return quantized_call(own)(x[None], t, inputs)[0][0]

        return jax.vmap(one)(index, x, self.first.cond)


def stacked(qs: Sequence[Quantized], steps: Steps) -> Stack:
    """Return recipes as one, in this order; what they share is kept once.

    Widths of integers, scales and weights are data (`precision.alike`). Where weights differ, all
    of them are held: a chip would need codes that are nested, or K copies.

    Args:
      qs: of one denoiser, two or more.
      steps: the sampler, whose steps read the state alone, such as ddim.

    Raises:
      ValueError: fewer than two; rounding with memory of earlier calls; a sampler with memory; what
        `alike` refuses.
    """
    for q in qs:
        check_quantized(q)
        require(not remembered(q.site_inputs), "qs",
                got="activations that are rounded with memory of other calls",
                expected="roundings of one call", remedy="leave feedback and differences out",
                )  # fmt: skip
    require(len(qs) >= 2, "qs", got=len(qs), expected="two recipes or more",
            remedy="quantize(calibration, recipe) of each width")  # fmt: skip
    check_first_order(steps)
    same = alike(qs, steps)
    noise = qs[0].noise
    for q in qs[1:]:
        noise |= q.noise
    rows = [jax.tree.leaves(q.site_inputs) for q in same]
    places = [i for i, column in enumerate(zip(*rows, strict=True))
              if not all(_equal(leaf, column[0]) for leaf in column[1:])]  # fmt: skip
    varying = tuple(jnp.stack([row[i] for row in rows]) for i in places)
    return Stack(dataclasses.replace(same[0], noise=noise), varying, tuple(places))


def check_first_order(steps: Steps) -> None:
    """Refuse samplers that controllers do not know.

    Raises:
      ValueError: a sampler with memory, or of a state of several parts.
    """
    require(steps.is_first_order, "steps", got="a sampler with memory or with matrix coefficients",
            expected="one whose steps read the state alone, such as ddim",
            remedy="choose recipes by step beforehand, see widths_by_step")  # fmt: skip


def run_stack(
    stack: Stack,
    decide_fn: DecideFn,
    slices: PyTree,
    held: PyTree,
    x_T: Array,
    steps: Steps,
    key: Key | None = None,
) -> Trajectory:
    """Return a run whose every call asks `decide_fn` which recipe each sample takes.

    One `lax.scan`: what a call decides by, and what it holds for the next one, are data. The
    outputs of the trajectory are the recipes taken [N, batch] and those of the decisions.

    Args:
      stack: the recipes, with the conditions of these samples.
      decide_fn: (slice, held, x [batch, *shape], eps) -> (index [batch], held, outputs), a
        pure function; eps is what the call before predicted, zeros before the first.
      slices: what a decision is given, leaves [N, ...].
      held: what the first decision is handed.
      x_T: initial noise [batch, *shape].
      steps: the sampler; key: of its own noise, None where it adds none.
    """
    check_first_order(steps)

    def call(x, t, inputs, state):
        own, slices = inputs
        held, eps = state
        index, held, outputs = decide_fn(slices, held, x, eps)
        eps = stack.predict(index, x, t, own).astype(eps.dtype)
        return eps, (index, outputs), (held, eps)

    start = jnp.zeros(jnp.shape(x_T), float_dtype(x_T))
    return sample(call, x_T, steps, key=key, per_call=(stack.first.calls(steps), slices),
                  state=(held, start), keep_trajectory=False)  # fmt: skip


def run_choices(
    stack: Stack, choices, x_T: Array, steps: Steps, key: Key | None = None
) -> Trajectory:
    """Return the run whose samples take these recipes [N, batch], see `run_stack`."""

    def decide_fn(own, held, x, eps):
        return own, held, None

    return run_stack(stack, decide_fn, choices, (), x_T, steps, key)


@checked(num_samples=check_count)
def in_order(choice, num_samples: int) -> np.ndarray:
    """Return a choice by step [N] for every sample [N, num_samples]."""
    choice = np.asarray(choice, np.int32)
    return np.broadcast_to(choice[:, None], (len(choice), num_samples))


def _equal(a, b) -> bool:
    if a is b:
        return True
    left, right = (_numbers(jnp.asarray(leaf)) for leaf in (a, b))
    return bool(np.array_equal(left, right))


def _numbers(leaf) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
