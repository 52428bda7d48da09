"""Train any loss with optax: EMA, gradient clipping, resumable Orbax checkpoints."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


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


class TrainState(NamedTuple):
    """Everything that a resumed run needs; losses [num_steps // log_every] is the curve so far."""

    step: Any
    params: Any
    ema: Any
    opt_state: Any
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
    losses = jnp.full((config.num_steps // config.log_every,), jnp.nan, jnp.float32)
    ema = jax.tree.map(jnp.array, params)
    return TrainState(jnp.int32(0), params, ema, make_optimizer(config).init(params), losses)


def make_train_step(loss_fn: Callable, config: TrainConfig):
    """Return train_step(state, images) -> (state, loss), compiled.

    The batch, the times and the noise of step n come from fold_in(key(seed), n): a run that was
    interrupted and resumed is the same run.
    """
    optimizer = make_optimizer(config)

    def train_step(state, images):
        k_batch, k_loss = jax.random.split(
            jax.random.fold_in(jax.random.key(config.seed), state.step)
        )
        batch = images[jax.random.randint(k_batch, (config.batch_size,), 0, images.shape[0])]
        loss, grads = jax.value_and_grad(loss_fn)(state.params, k_loss, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average forgets its random start early: (1+n)/(10+n) is below ema_decay at first.
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + n) / (10 + n))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        return TrainState(state.step + 1, params, ema, opt_state, state.losses), loss

    return jax.jit(train_step, donate_argnums=0)


def fit(
    loss_fn: Callable,
    params,
    images,
    config: TrainConfig,
    *,
    directory: str | Path | None = None,
    progress: bool = True,
) -> TrainState:
    """Minimise loss_fn(params, key, batch) over images, resuming a run that `directory` holds.

    Args:
      loss_fn: (params, key, x_0 [batch, h, w, c]) -> scalar.
      params: initial parameters, any pytree.
      images: training images [n, h, w, c], kept on the device.
      config: how to train.
      directory: where checkpoints go; None keeps none.
      progress: show a progress bar.

    Returns:
      The state after `config.num_steps`; `state.ema` are the parameters to sample with.

    Raises:
      FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
    """
    from tqdm import tqdm

    state = init_state(params, config)
    manager = _manager(directory) if directory is not None else None
    if manager is not None and manager.latest_step() is not None:
        state = _restore(manager, state)
    train_step = make_train_step(loss_fn, config)
    images = jnp.asarray(images)
    window: list = []
    start = int(state.step)
    bar = tqdm(
        range(start, config.num_steps), initial=start, total=config.num_steps,
        disable=not progress, desc="training", unit="step",
    )  # fmt: skip
    try:
        for n in bar:
            state, loss = train_step(state, images)
            window.append(loss)
            if (n + 1) % config.log_every == 0:
                mean = float(np.mean(jax.device_get(window)))
                window = []
                if not np.isfinite(mean):
                    raise FloatingPointError(
                        f"loss is {mean} at step {n + 1}; lower the learning rate "
                        f"(now {config.learning_rate}) and start from the last checkpoint."
                    )
                state = state._replace(losses=state.losses.at[n // config.log_every].set(mean))
                bar.set_postfix(loss=f"{mean:.4f}")
            is_last = n + 1 == config.num_steps
            if manager is not None and (is_last or (n + 1) % config.save_every == 0):
                _save(manager, state)
    except KeyboardInterrupt:
        if manager is not None:
            _save(manager, state)
        raise
    finally:
        if manager is not None:
            manager.wait_until_finished()
            manager.close()
    return state


def _manager(directory):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _save(manager, state):
    import orbax.checkpoint as ocp

    # A diverged state must not push the last good one out.
    params = jax.tree.leaves(jax.device_get(state.params))
    if all(np.isfinite(p).all() for p in params) and int(state.step) != manager.latest_step():
        manager.save(int(state.step), args=ocp.args.StandardSave(state._asdict()))
        manager.wait_until_finished()


def _restore(manager, like: TrainState) -> TrainState:
    import orbax.checkpoint as ocp

    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    step = manager.latest_step()
    try:
        return TrainState(**manager.restore(step, args=ocp.args.StandardRestore(abstract)))
    except ValueError as error:
        raise ValueError(
            f"The run in {manager.directory} (step {step}) does not fit this model or these "
            "settings; continue it with the settings it began with, or choose an empty folder."
        ) from error
