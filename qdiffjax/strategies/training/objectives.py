"""What a quantized denoiser is trained for.

    distillation    sum_i w_i |eps_hat(x_hat_i) - eps(x_hat_i)|^2 / n   along its own run, no data
    propagated      |sum_i J_{i+1} c_i (eps_hat_i - eps_i)|^2 / n         the same, carried to x_0
    whole_run       |x_hat_0 - x_0|^2 / n                               through the run, no data
    denoising       |eps - eps_hat(alpha x_0 + sigma eps)|^2 / n        survey, eqs. 10 and 11

with x_hat_i the states of the quantized sampler, which move with what is learned: a network is
taught where it goes, not where its teacher would go.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion
from qdiffjax._checks import check_count, check_names, check_number, check_numbers, checked, require
from qdiffjax._typing import Array, float_dtype
from qdiffjax.analysis.errors import propagation, runs
from qdiffjax.diffusion import losses
from qdiffjax.precision import Quantized, full_call, quantized_call
from qdiffjax.strategies.drafts import Draft

UNIFORM, GAINS = "uniform", "gains"
OWN, FULL = "own", "float"


class Task(NamedTuple):
    """An objective on one draft.

    loss_fn: (q, key, batch, *fixed) -> [], differentiable in the roundings of q; examples: what
    batches are drawn from; fixed: arrays; evaluations: of the network, times samples, of one step
    with its gradient; prepared: those that it took to get here; judge_fn: as loss_fn, by which a
    result is accepted, None for the same.
    """

    loss_fn: Callable[..., Array]
    examples: Any
    fixed: tuple
    evaluations: int
    prepared: int = 0
    judge_fn: Callable[..., Array] | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised; your own is a function from a draft to a `Task`.

    Attributes:
      name: in few words.
      batch_size: examples of a step.
      task: (draft) -> its `Task`.
    """

    name: str
    batch_size: int
    task: Callable[[Draft], Task]


@checked(num_samples=check_count)
def distillation(weights: Any = UNIFORM, *, num_samples: int = 4, along: str = OWN) -> Objective:
    """Return the objective that has the full-precision network as teacher, at every call of a run.

        sum_i w_i mean |eps_hat_i(x_hat_i) - eps(x_hat_i)|^2,   x_hat_i of the quantized run

    Every step draws fresh noise and runs the sampler; no data is needed. States are constants of
    the derivative. EfficientDM (He et al. 2024) takes the states of the teacher's run; along its
    own the network is taught at what its earlier errors have made of the state.

    Args:
      weights: of the calls [N]; "uniform" for 1 / N; "gains" for what a unit of independent error
        in eps_hat_i does to the mean square of the sample, see `measured_gains`: the loss is then
        the error of the sample that first-order theory predicts.
      num_samples: runs of a step.
      along: "own" states, or those of the "float" run.
    """
    if isinstance(weights, str):
        check_names("weights", (weights,), (UNIFORM, GAINS))
    else:
        check_number("weights", weights, least=0)
    check_names("along", (along,), (OWN, FULL))

    def task(draft: Draft) -> Task:
        num = draft.steps.t.shape[0]
        has_gains = isinstance(weights, str) and weights == GAINS
        if has_gains:
            table = measured_gains(draft)
        else:
            table = np.full(num, 1 / num) if isinstance(weights, str) else np.asarray(weights)
        require(table.shape == (num,) and np.any(table > 0), "weights",
                got=f"shape {table.shape}", expected=f"{num} numbers, not all zero",
                remedy="one for each call of the sampler")  # fmt: skip

        def loss_fn(q: Quantized, key, batch, table):
            q, x_T, key = _drawn(draft, q, key, num_samples)
            run = diffusion.sample(
                jax.checkpoint(_taught(q, along, mean_square)), x_T, draft.steps, key=key,
                per_call=q.calls(draft.steps), state=q.start(x_T), keep_trajectory=False,
            )  # fmt: skip
            return jnp.sum(table.astype(run.outputs.dtype) * run.outputs)

        prepared = 3 * PROBES * num * draft.x_T.shape[0] if has_gains else 0
        return Task(loss_fn, _nothing(), (jnp.asarray(table),), 5 * num * num_samples, prepared,
                    _sample_error(draft, num_samples))  # fmt: skip

    word = weights if isinstance(weights, str) else "own weights"
    return Objective(f"distillation, {word}{' at float states' if along == FULL else ''}", 1, task)


def _taught(q: Quantized, along: str, fn: Callable[[Array], Any]):
    """Return the call whose outputs are fn of the difference to what the teacher says."""
    hat, full = quantized_call(q), full_call(q)

    def call(x, t, inputs, state):
        x, state = jax.lax.stop_gradient((x, state))
        eps_hat, _, state = hat(x, t, inputs, state)
        eps = jax.lax.stop_gradient(full(x, t)[0])
        apart = fn(eps_hat - eps)
        return *jax.lax.stop_gradient((eps_hat if along == OWN else eps,)), apart, state

    return call


@checked(num_samples=check_count)
def propagated(*, num_samples: int = 4) -> Objective:
    """Return the objective that is the error of the sample by first-order propagation.

        mean |delta_N|^2,   delta_{i+1} = J_i delta_i + c_i (eps_hat(x_hat_i) - eps(x_hat_i))

    with J_i the Jacobian of the float sampler at the states of the quantized run, see
    `analysis.errors.propagate`. Local errors are signed: unlike under `distillation("gains")` those
    of several calls add up or make up for each other. States and Jacobians are constants of the
    derivative.

    Args:
      num_samples: runs of a step.
    """

    def task(draft: Draft) -> Task:
        steps = draft.steps

        def loss_fn(q: Quantized, key, batch):
            q, x_T, key = _drawn(draft, q, key, num_samples)
            run = diffusion.sample(
                jax.checkpoint(_taught(q, OWN, lambda apart: apart)), x_T, steps, key=key,
                per_call=q.calls(steps), state=q.start(x_T),
            )  # fmt: skip
            xs = jax.lax.stop_gradient(diffusion.as_point(run.states).x)
            errors = jax.vmap(lambda coeffs, apart: coeffs.commit(apart))(steps.coeffs, run.outputs)
            delta = propagation.propagate(jax.checkpoint(full_call(q)), xs, steps, errors)
            return mean_square(runs.current(runs.at(delta, -1), steps))

        return Task(loss_fn, _nothing(), (), 9 * steps.t.shape[0] * num_samples, 0,
                    _sample_error(draft, num_samples))  # fmt: skip

    return Objective("propagated", 1, task)


@checked(num_samples=check_count)
def whole_run(*, num_samples: int = 4) -> Objective:
    """Return the objective that is the mean square error of the sample itself.

        mean |x_hat_0 - x_0|^2

    The derivative goes back through every step of the quantized sampler, straight-through where it
    rounds, so that errors of its calls may make up for each other.

    Args:
      num_samples: runs of a step.
    """

    def task(draft: Draft) -> Task:
        loss_fn = _sample_error(draft, num_samples)
        return Task(loss_fn, _nothing(), (), 5 * draft.steps.t.shape[0] * num_samples)

    return Objective("whole run", 1, task)


def _sample_error(draft: Draft, num: int) -> Callable[..., Array]:
    """Return (q, key, ...) -> the mean square error of fresh samples []."""

    def loss_fn(q: Quantized, key, *_):
        q, x_T, key = _drawn(draft, q, key, num)
        full = diffusion.sample(full_call(q), x_T, draft.steps, key=key, keep_trajectory=False)
        own = diffusion.sample(
            jax.checkpoint(quantized_call(q)), x_T, draft.steps, key=key,
            per_call=q.calls(draft.steps), state=q.start(x_T), keep_trajectory=False,
        )  # fmt: skip
        return mean_square(own.x_0 - jax.lax.stop_gradient(full.x_0))

    return loss_fn


@checked(num_times=check_count, batch_size=check_count)
def denoising(
    images, cond=None, *, batch_size: int = 64, num_times: int = 8, less_full: bool = False
) -> Objective:
    """Return the training loss of diffusion, of the quantized network at the sampler's times.

        mean |eps - eps_hat(alpha x_0 + sigma eps, t)|^2        survey, eqs. 10 and 11

    With `less_full` that of the full-precision network on the same draws is subtracted: the
    survey's eq. 12, of the same derivative, so that zero is no penalty at all.

    Args:
      images: x_0 [num, *shape], in the network's own space (latents).
      cond: their conditions, leaves [num, ...], for a network that takes some.
      batch_size: images of a step.
      num_times: times of a step, each of its share of the images.
      less_full: subtract the loss in full precision.

    Raises:
      ValueError: a batch that the times do not divide; no conditions for a network with them.
    """
    check_numbers("images", images, least_rank=2)
    require(batch_size % num_times == 0, "batch_size", got=batch_size,
            expected=f"a multiple of num_times={num_times}",
            remedy="change one of them")  # fmt: skip

    def task(draft: Draft) -> Task:
        denoiser, steps = draft.calibration.denoiser, draft.steps
        images_shape, shape = tuple(np.shape(images)[1:]), tuple(draft.x_T.shape[1:])
        require(images_shape == shape, "images", got=f"shape {images_shape}",
                expected=f"{shape}", remedy="encode or resize them")  # fmt: skip
        require((cond is None) == (denoiser.cond is None), "cond",
                got="none" if cond is None else "some", expected="what this network takes",
                remedy="denoising(images, cond)")  # fmt: skip

        def loss_fn(q: Quantized, key, batch, levels):
            calls = q.calls(steps)
            times = steps.times(batch[0])
            keys = jax.random.split(key)
            places = jax.random.randint(keys[0], (num_times,), 0, times.shape[0])
            split = jax.tree.map(lambda a: a.reshape(num_times, -1, *a.shape[1:]), batch)

            @jax.checkpoint
            def one(slices):
                (x_0, own), place, key = slices
                given = q if own is None else q.given(own)
                eps = jax.random.normal(key, x_0.shape, x_0.dtype)
                level = diffusion.NoiseLevel(*(part[place].astype(x_0.dtype) for part in levels))
                x_t = losses.add_noise(x_0, eps, level)
                inputs = jax.tree.map(lambda a: jnp.asarray(a)[place], calls)
                hat = quantized_call(given)(x_t, times[place], inputs, given.start(x_t))[0]
                loss = mean_square(eps - hat)
                if less_full:
                    full = full_call(given)(x_t, times[place])[0]
                    loss -= mean_square(eps - jax.lax.stop_gradient(full))
                return loss

            keys = jax.random.split(keys[1], num_times)
            return jnp.mean(jax.lax.map(one, (split, places, keys)))

        level = denoiser.schedule.exact(np.asarray(steps.t, np.float64))
        levels = tuple(jnp.asarray(np.asarray(part), jnp.float32) for part in level)
        examples = jnp.asarray(images).astype(float_dtype(draft.x_T)), cond
        return Task(loss_fn, examples, (levels,), (4 + less_full) * batch_size)

    return Objective("loss less the float one" if less_full else "denoising", batch_size, task)


PROBES = 4


def measured_gains(draft: Draft, num_probes: int = PROBES) -> np.ndarray:
    """Return what a unit of mean square in eps at each call adds to that of the sample [N].

        G_i^2 = |J_{i+1} c_i|_F^2 / n = E_v |c_i^T l_{i+1}|^2 / n,    l = adjoint of x_0 under v

    Of full-precision runs from the draft's noise, with random signs v: errors that are independent
    of each other, and alike in all directions, leave sum_i G_i^2 mean |e_i|^2 in the sample.
    """
    q = Quantized(draft.denoiser, {})
    call, steps = full_call(q), draft.steps

    @jax.jit
    def measure(x_T, key):
        xs = diffusion.sample(call, x_T, steps, key=draft.key).states

        def one(v):
            adjoint = runs.at(runs.adjoints(call, xs, steps, v), slice(1, None))

            def back(coeffs, l):
                zero = jnp.zeros(x_T.shape, float_dtype(x_T))
                return mean_square(jax.vjp(coeffs.commit, zero)[1](l)[0])

            return jax.vmap(back)(steps.coeffs, adjoint)

        like = jnp.zeros(x_T.shape, float_dtype(x_T))
        return jnp.mean(jax.lax.map(one, runs.signs(key, num_probes, like)), 0)

    return np.asarray(measure(draft.x_T, jax.random.fold_in(draft.key, 7)))


def mean_square(values) -> Array:
    """Return the mean square of all numbers []."""
    return jnp.mean(values.astype(float_dtype(values)) ** 2)


def _nothing() -> Array:
    """Return the one example of an objective that draws what it needs from its key."""
    return jnp.zeros((1,), jnp.float32)


def _drawn(draft: Draft, q: Quantized, key, num: int):
    """Return the denoiser with conditions of fresh samples, their noise, and the steps' own key."""
    denoiser = draft.calibration.denoiser
    x_T = dataclasses.replace(denoiser, cond=None).draw(key, num, np.asarray(draft.steps.t)[0]).x_T
    cond = denoiser.cond
    if callable(cond):
        cond = denoiser.draw_cond(key, num)
    elif cond is not None:  # any of them, not the first ones at every step
        most = jax.tree.leaves(cond)[0].shape[0]
        rows = jax.random.randint(jax.random.fold_in(key, num + 1), (num,), 0, most)
        cond = jax.tree.map(lambda a: jnp.asarray(a)[rows], cond)
    return q.given(cond), x_T.astype(float_dtype(draft.x_T)), jax.random.fold_in(key, num)
