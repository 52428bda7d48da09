"""Train any loss with optax: EMA, gradient clipping, resumable Orbax checkpoints."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qdiffjax import resuming
from qdiffjax._checks import require


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
      num_steps: optimizer steps in total, those before an interruption included.
      batch_size: images a step, drawn with replacement.
      learning_rate: Adam's peak rate: linear warm-up, constant, linear decay to 0 at the end.
      warmup_steps: steps of the warm-up.
      decay_fraction: last fraction of the run, in which the rate decays.
      ema_decay: decay of the average of the parameters, which is what sampling uses.
      max_norm: gradients are clipped to this global norm.
      log_every: steps over which a point of the loss curve is averaged.
      save_every: steps between checkpoints.
      seed: of the batches, the times and the noise; a resumed run sees the same ones.

    Raises:
      ValueError: a count below 1, a rate, norm or fraction that is none.
    """

    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_fraction: float = 0.4
    ema_decay: float = 0.999
    max_norm: float = 1.0
    log_every: int = 50
    save_every: int = 500
    seed: int = 0

    def __post_init__(self):
        for names, expected, fits in (
            ("num_steps batch_size log_every save_every", "at least 1", lambda v: v >= 1),
            ("learning_rate max_norm", "a positive number", lambda v: 0 < v < math.inf),
            ("ema_decay decay_fraction", "it in [0, 1]", lambda v: 0 <= v <= 1),
            ("warmup_steps", "at least 0", lambda v: v >= 0),
            ("seed", "0 to 2^32 - 1", lambda v: 0 <= v < 2**32),
        ):
            for name in names.split():
                value = getattr(self, name)
                require(
                    fits(value),
                    got=f"{name}={value}",
                    expected=expected,
                    remedy="choose another value",
                )


class TrainState(NamedTuple):
    """Everything that a resumed run needs.

    window: sum of the losses since the last point of the curve [].
    losses: the curve so far, each point a mean over log_every steps
      [max(1, num_steps // log_every)].
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    window: Any
    losses: Any


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam under a trapezoidal learning rate, after clipping by global norm."""
    num_decay = max(1, round(config.decay_fraction * config.num_steps))
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, 0.0, num_decay),
        ],
        [config.warmup_steps, max(config.warmup_steps, config.num_steps - num_decay)],
    )
    return optax.chain(optax.clip_by_global_norm(config.max_norm), optax.adam(rate))


def init_state(params, config: TrainConfig) -> TrainState:
    """State before the first step."""
    # Copies: the training step donates its state, and `params` stay the caller's.
    params = jax.tree.map(jnp.array, params)
    # Orbax stores no empty array, so the curve of a run shorter than a window is one NaN.
    num_points = max(1, config.num_steps // config.log_every)
    losses = jnp.full((num_points,), jnp.nan, jnp.float32)
    ema = jax.tree.map(jnp.array, params)
    opt_state = make_optimizer(config).init(params)
    return TrainState(jnp.int32(0), params, ema, opt_state, jnp.float32(0), losses)


def make_train_step(loss_fn: Callable, config: TrainConfig, mesh: Mesh | None = None):
    """Return train_step(state, examples, *fixed) -> (state, loss), compiled.

    The loss is called as loss_fn(params, key, batch, *fixed). The batch, the times and the noise of
    step n come from fold_in(key(seed), n): a run that was interrupted and resumed is the same run.
    On a mesh the batch is split over all its devices and
    XLA averages the gradients; the loss is that of one device up to the order of the sums.
    """
    optimizer = make_optimizer(config)

    def train_step(state, examples, *fixed):
        k_batch, k_loss = jax.random.split(
            jax.random.fold_in(jax.random.key(config.seed), state.step)
        )
        num = jax.tree.leaves(examples)[0].shape[0]
        index = jax.random.randint(k_batch, (config.batch_size,), 0, num)
        if mesh is not None:
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            index = jax.lax.with_sharding_constraint(index, split)
        batch = jax.tree.map(lambda a: a[index], examples)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, k_loss, batch, *fixed)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average forgets its random start early: (1+n)/(10+n) is below ema_decay at first.
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + n) / (10 + n))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        curve = _extend_curve(state, loss.astype(jnp.float32), config.log_every)
        return TrainState(state.step + 1, params, ema, opt_state, *curve), loss

    return jax.jit(train_step, donate_argnums=0)


def _extend_curve(state, loss, log_every):
    """Return (window, losses) after one more loss: part of the state, so that resuming keeps it."""
    window, is_point = state.window + loss, (state.step + 1) % log_every == 0
    # Beyond the curve's end (a last, incomplete window) nothing is written.
    points = state.losses.at[state.step // log_every].set(window / log_every, mode="drop")
    return jnp.where(is_point, 0.0, window), jnp.where(is_point, points, state.losses)


def fit(
    loss_fn: Callable,
    params,
    examples,
    config: TrainConfig,
    *,
    fixed: tuple = (),
    directory: str | Path | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
    mesh: Mesh | None = None,
    progress: bool = True,
) -> TrainState:
    """Minimise loss_fn(params, key, batch) over examples, resuming a run that `directory` holds.

    Args:
      loss_fn: (params, key, batch) -> scalar; a batch has the structure of `examples`.
      params: initial parameters, any pytree.
      examples: training data, an array or a pytree of arrays [n, ...], kept on the device.
      config: how to train.
      fixed: what the loss is handed after the batch, the same at every step: pytrees of arrays,
        so that runs that differ in them share a compiled step.
      directory: where checkpoints go; None keeps none. Ctrl-C keeps the last step done there.
      about: what else makes the run in `directory` this one, in JSON's terms.
      mesh: devices to share each batch; None is one device.
      progress: show a progress bar.

    Returns:
      The state after `config.num_steps`; `state.ema` are the parameters to sample with.

    Raises:
      FloatingPointError: the loss or a parameter became NaN or infinite; the last checkpoint is
        kept.
      ValueError: no or unequal numbers of examples, a mesh that does not divide the batch, or a
        `directory` that holds another run, or damaged checkpoints alone.
      OSError: `directory` cannot be written to, or another run does.
    """
    from tqdm import tqdm

    state, examples = _place(init_state(params, config), examples, config, mesh)
    run = {n: v for n, v in dataclasses.asdict(config).items() if n != "save_every"}
    with (
        resuming.opened(directory, run | dict(about)) as manager,
        resuming.interrupts_later() as raise_interrupt,
    ):
        if manager is not None:
            state = TrainState(**(resuming.restore(manager, state._asdict()) or state._asdict()))
        train_step = make_train_step(loss_fn, config, mesh)
        bar = tqdm(
            range(int(state.step), config.num_steps), initial=int(state.step),
            total=config.num_steps, disable=not progress, desc="training", unit="step",
        )  # fmt: skip
        try:
            for n in bar:
                state, _ = train_step(state, examples, *fixed)
                is_last = n + 1 == config.num_steps
                if (n + 1) % config.log_every == 0:
                    bar.set_postfix(loss=f"{_last_point(state, config):.4f}")
                if is_last:
                    _check_end(state, config)
                if manager is not None and (is_last or (n + 1) % config.save_every == 0):
                    resuming.save(manager, n + 1, state._asdict())
                raise_interrupt()
        except KeyboardInterrupt:
            is_whole = not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            if manager is not None and is_whole:
                resuming.save(manager, int(state.step), state._asdict())
            raise
    return state


def _place(state, examples, config, mesh):
    """Put the state and the examples on the device, or a copy of them on each of the mesh."""
    examples = jax.tree.map(jnp.asarray, examples)
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(examples)}
    require(
        len(counts) == 1 and 0 not in counts, got=f"arrays of {sorted(counts)} examples",
        expected="as many of each and at least one",
        remedy="images and labels must belong together",
    )  # fmt: skip
    if mesh is None:
        return state, examples
    require(
        config.batch_size % mesh.size == 0,
        got=f"batches of {config.batch_size} for {mesh.size} devices",
        expected=f"a multiple of {mesh.size}", remedy="change batch_size",
    )  # fmt: skip
    return jax.device_put((state, examples), NamedSharding(mesh, PartitionSpec()))


def _last_point(state, config) -> float:
    """Return the newest point of the curve, if it is finite."""
    step = int(state.step)
    mean = float(state.losses[step // config.log_every - 1])
    _require_finite(np.isfinite(mean), f"loss at step {step}", mean, config)
    return mean


def _check_end(state, config) -> None:
    """Refuse losses since the last point, and parameters, that are not finite."""
    step, window = int(state.step), float(state.window)
    since = config.log_every * (step // config.log_every)
    _require_finite(np.isfinite(window), f"losses from step {since} to {step}", window, config)
    _require_finite(resuming.is_finite((state.params, state.ema)), f"parameters at step {step}",
                    "NaN or infinite values", config)  # fmt: skip


def _require_finite(condition, what: str, got, config) -> None:
    require(
        condition, what, got=got, expected="a finite number",
        remedy=f"lower the learning rate (now {config.learning_rate}) and start from the last "
        "checkpoint", error=FloatingPointError,
    )  # fmt: skip
