"""Phases of shaped weights, chosen by what their runs commit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, checked, require
from qdiffjax.compiling import compiled
from qdiffjax.precision import final_samples
from qdiffjax.strategies.bases import sequence_of
from qdiffjax.strategies.drafts import TRAIN, Cure, Draft


@checked(num=check_count)
def chosen_phases(num: int = 8) -> Cure:
    """Return the cure that draws the phases of shaped weights several times and keeps the best.

        min_j E |x_hat_0(phases_j) - x_0|^2,   j = 1 .. num, over the draft's samples

    What a sequence loses at its first calls nothing came before, and what it loses at its last ones
    nothing makes up for: an error that all samples share, and that phases decide. It is the same on
    other noise, so that a few samples tell good phases from bad ones. Neither storage nor
    arithmetic changes. Costs num + 1 sampling runs of the draft's samples.

    Args:
      num: draws of the phases.

    Raises:
      ValueError: no weight that is rounded anew at every call.
    """

    def check(draft: Draft) -> None:
        weights = [inputs.weight for inputs in draft.site_inputs().values()]
        require(any(sequence_of(weight) is not None for weight in weights), "phases",
                got="no weight that is rounded anew at every call", expected="some",
                remedy="a recipe such as 'W4 shaped A8'")  # fmt: skip

    def apply(draft: Draft) -> Draft:
        first = draft.at_samples()
        run = compiled(final_samples)
        run_in_full = compiled(functools.partial(final_samples, in_full=True))
        x_0 = run_in_full(first, draft.x_T, draft.steps, draft.key)
        own = draft.options["key"]
        keys = [own, *(jax.random.fold_in(own, j) for j in range(1, num))]

        def error(key) -> float:
            x_hat_0 = run(_with_key(draft, key).at_samples(), draft.x_T, draft.steps, draft.key)
            return float(jnp.mean(jnp.square(x_hat_0 - x_0)))

        best = min(keys, key=error)
        evaluations = (num + 1) * draft.steps.t.shape[0] * draft.x_T.shape[0]
        return _with_key(draft, best).billed(evaluations)

    return Cure(f"best of {num} phases", TRAIN, apply, check)


def _with_key(draft: Draft, key) -> Draft:
    return dataclasses.replace(draft, options={**draft.options, "key": key})
