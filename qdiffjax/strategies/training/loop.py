"""The training itself: from a start to values, by the loop of float training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import results
from qdiffjax._checks import require
from qdiffjax.strategies.drafts import Draft
from qdiffjax.strategies.training.objectives import Task
from qdiffjax.strategies.training.values import Start, Values

NUM_JUDGED = 4  # draws of the objective by which a result is accepted


class Training(NamedTuple):
    """How long and how fast, and where it is kept; see `qat`."""

    num_steps: int
    batch_size: int
    learning_rate: float
    decay: float
    directory: str | Path | None
    save_every: int
    progress: bool

    @property
    def config(self):
        """The settings of the loop; seeds are an argument of the loss, so that runs share it."""
        from qdiffjax.training import TrainConfig

        return TrainConfig(
            self.num_steps, self.batch_size, self.learning_rate, decay_fraction=0.5,
            warmup_steps=min(20, self.num_steps // 10), ema_decay=self.decay, max_norm=1e4,
            log_every=max(1, self.num_steps // 50), save_every=self.save_every,
        )  # fmt: skip


class Learned(NamedTuple):
    """values: averaged; is_better: whether they are better than the first, on noise not seen;
    losses: the curve, in units of the objective.
    """

    values: Values
    is_better: bool
    losses: np.ndarray


def learned(
    draft: Draft,
    task: Task,
    training: Training,
    applied: Callable[[Start, Values], Any],
    start: Start,
    first: Values,
    *,
    about: dict[str, Any],
    price_fn: Callable[[Values], Any] | None = None,
) -> Learned:
    """Minimise the objective over values, in shares of what it is at first.

    Args:
      draft: its key is that of the noise.
      task: the objective.
      training: how long and how fast.
      applied: (start, values) -> the quantized denoiser.
      start, first: where it begins.
      about: what makes a training that is kept this one, beside weights and key.
      price_fn: values -> what is added, in shares too.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    from qdiffjax.training import fit

    config, (_, seen, own) = training.config, keys_of(draft)
    keys = jax.random.split(seen, NUM_JUDGED)

    def loss_fn(values, key, batch, start, own, before, *fixed):
        key = jax.random.fold_in(own, jax.random.bits(key))
        share = task.loss_fn(applied(start, values), key, batch, *fixed) / before
        return share if price_fn is None else share + price_fn(values).astype(share.dtype)

    def mean_of(fn):
        def mean(values, start, batch, *fixed):
            q = applied(start, values)
            return jnp.mean(jax.lax.map(lambda key: fn(q, key, batch, *fixed), keys))

        return jax.jit(mean)

    shown = start, jax.tree.map(lambda a: a[: config.batch_size], task.examples), *task.fixed
    before = mean_of(task.loss_fn)(first, *shown)
    require(bool(jnp.isfinite(before)), "loss before training", got=float(before),
            expected="a finite number", remedy="check the parameters, the recipe and the sampler",
            error=FloatingPointError)  # fmt: skip
    unit = jnp.where(before > 0, before, jnp.ones_like(before))
    about = about | {"of": _mark(start, draft)} if training.directory else {}
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies by Python numbers
        state = fit(
            loss_fn, first, task.examples, config, fixed=(start, own, unit, *task.fixed),
            directory=training.directory, about=about, progress=training.progress,
        )  # fmt: skip
    judged = mean_of(task.judge_fn or task.loss_fn)
    is_better = bool(judged(state.ema, *shown) < judged(first, *shown))
    return Learned(state.ema, is_better, np.asarray(state.losses) * float(unit))


def keys_of(draft: Draft):
    """Return the keys of the first values, of the judge's noise, and of the training's [3]."""
    return jax.random.split(jax.random.fold_in(draft.key, 5), 3)


def evaluations(task: Task, num_steps: int) -> int:
    """Return the evaluations of a training, what it takes to judge it among them."""
    return num_steps * task.evaluations + task.prepared + 2 * NUM_JUDGED * task.evaluations * 2 // 5


def _mark(start: Start, draft: Draft) -> str:
    """Return the fingerprint of what is trained, from where, and on which noise."""
    leaves = jax.tree.leaves((start.grids, draft.calibration.denoiser.params))
    return results.fingerprint(np.asarray(jax.random.key_data(draft.key)), *map(np.asarray, leaves))
