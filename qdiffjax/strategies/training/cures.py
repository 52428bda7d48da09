"""The cure that trains a quantized denoiser while it rounds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import results
from qdiffjax._checks import (
    POSITIVE,
    SHARE,
    check_count,
    check_names,
    check_type,
    checked,
    optional,
    require,
)
from qdiffjax.strategies.drafts import TRAIN, Cure, Draft
from qdiffjax.strategies.training.objectives import Objective, Task, distillation
from qdiffjax.strategies.training.values import (
    ACTIVATIONS,
    LEARNED,
    LEVELS,
    LSQ,
    PACT,
    SCALES,
    WEIGHTS,
    Choice,
    Start,
    Values,
    starting_point,
)

NUM_JUDGED = 4  # draws of the objective by which a result is accepted
DEFAULT = (WEIGHTS, SCALES, ACTIVATIONS, LEVELS)


@checked(num_steps=check_count, rank=optional(check_count), learning_rate=POSITIVE, decay=SHARE)
def qat(
    num_steps: int = 500,
    *,
    objective: Objective | None = None,
    sites: Sequence[str] | None = None,
    learn: Sequence[str] = DEFAULT,
    rank: int | None = None,
    clip: str = LSQ,
    learning_rate: float = 0.03,
    decay: float = 0.98,
    directory: str | Path | None = None,
    save_every: int = 500,
    progress: bool = True,
) -> Cure:
    """Return the cure that trains weights and grids of the quantized denoiser, straight-through.

    It goes on from what the cures before it decided: from the default rounding, from GPTQ's, in a
    rotated basis, beside a low-rank part. Weights stay on their grid; biases and gains of norms,
    which no recipe rounds, stay as they are. What is not better than before by the objective, on
    noise that training has not seen, is not taken.

        scale: LSQ (Esser et al. 2020);  activations: LSQ+ (Bhalgat et al. 2020) or PACT (Choi et
        al. 2018);  rank: EfficientDM (He et al. 2024), Q(w + A B), merged before it is rounded

    Args:
      num_steps: steps of Adam.
      objective: `distillation()` and others of `strategies`; None is that.
      sites: globs of sites that are trained; others stay as post-training cures left them, which is
        the hybrid of both. None trains all that are rounded.
      learn: some of "weights"; "scales" of weights, with their zero points; "activations", static
        grids, which `static_clips()` makes; "levels" of codebooks.
      rank: of the change of a weight; None changes all numbers.
      clip: "lsq" or "pact", of activations whose grid begins at zero.
      learning_rate: of Adam, in steps of a grid and shares of a scale; falls to zero by the end.
      decay: of the average of the values, which is the result.
      directory: where the training is kept and goes on after an interruption; None for nowhere.
      save_every: steps between what is kept.
      progress: show a progress bar.

    Raises:
      ValueError: nothing to learn; words that are none; what does not fit the recipe.
      FloatingPointError: the loss is not finite.
    """
    check_names("clip", (clip,), (LSQ, PACT))
    require(not isinstance(learn, str), "learn", got=repr(learn), expected="a tuple of words",
            remedy=f"({learn!r},)", error=TypeError)  # fmt: skip
    check_names("learn", learn, LEARNED)
    objective = distillation() if objective is None else objective
    check_type("objective", objective, Objective, remedy="such as strategies.distillation()")
    choice = Choice({}, tuple(learn), rank, clip)

    def apply(draft: Draft) -> Draft:
        start, own = starting_point(draft, sites, choice)
        task = objective.task(draft)
        kept = {"directory": directory, "progress": progress}
        config = _config(num_steps, objective.batch_size, learning_rate, decay, save_every)
        values, losses = _learned(draft, own, start, task, config, kept, objective.name)
        done = draft if values is None else own.settled(start, values, draft)
        done = dataclasses.replace(done, losses={**draft.losses, name: losses})
        judged = 2 * NUM_JUDGED * task.evaluations * 2 // 5
        return done.billed(num_steps * task.evaluations + judged + task.prepared, num_steps)

    low = "" if rank is None else f" of rank {rank}"
    name = f"training{low}: {objective.name}"
    return Cure(name, TRAIN, apply)


def _config(num_steps: int, batch_size: int, learning_rate: float, decay: float, save_every: int):
    from qdiffjax.training import TrainConfig

    return TrainConfig(
        num_steps, batch_size, learning_rate, warmup_steps=min(20, num_steps // 10),
        decay_fraction=0.5, ema_decay=decay, max_norm=1e4, log_every=max(1, num_steps // 50),
        save_every=save_every,
    )  # fmt: skip


def _learned(
    draft: Draft, choice: Choice, start: Start, task: Task, config, kept: dict[str, Any], name: str
) -> tuple[Values | None, np.ndarray]:
    """Return the values, None if they are not better than before, and the curve of the loss."""
    from qdiffjax.training import fit

    keys = jax.random.split(jax.random.fold_in(draft.key, 5), 3)

    def loss_fn(values, key, batch, start, own, before, *fixed):
        key = jax.random.fold_in(own, jax.random.bits(key))
        return task.loss_fn(choice.applied(start, values), key, batch, *fixed) / before

    @jax.jit
    def judged(values, start, keys, batch, *fixed):
        q = choice.applied(start, values)
        return jnp.mean(jax.lax.map(lambda key: task.loss_fn(q, key, batch, *fixed), keys))

    first = choice.first(start, keys[0])
    seen = jax.random.split(keys[1], NUM_JUDGED)
    shown = start, seen, jax.tree.map(lambda a: a[: config.batch_size], task.examples), *task.fixed
    before = judged(first, *shown)
    require(bool(jnp.isfinite(before)), "loss before training", got=float(before),
            expected="a finite number", remedy="check the parameters, the recipe and the sampler",
            error=FloatingPointError)  # fmt: skip
    unit = jnp.where(before > 0, before, jnp.ones_like(before))
    about = {"objective": name, "learn": list(choice.learn), "clip": choice.clip,
             "of": _mark(start, draft)} if kept["directory"] else {}  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies by Python numbers
        state = fit(loss_fn, first, task.examples, config, about=about,
                    fixed=(start, keys[2], unit, *task.fixed), **kept)  # fmt: skip
    is_better = judged(state.ema, *shown) < before
    return (state.ema if bool(is_better) else None), np.asarray(state.losses) * float(unit)


def _mark(start: Start, draft: Draft) -> str:
    """Return the fingerprint of what is trained, from where, and on which noise."""
    leaves = jax.tree.leaves((start.grids, draft.calibration.denoiser.params))
    return results.fingerprint(np.asarray(jax.random.key_data(draft.key)), *map(np.asarray, leaves))
