"""What cannot be sampled is refused in words, before any long work."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, check_key, check_type, concrete, require
from qdiffjax._conditions import as_arguments
from qdiffjax.denoiser import Denoiser, Draw
from qdiffjax.diffusion import DiscreteSchedule, Steps
from qdiffjax.precision.quantized import Quantized


def check_sampling(
    denoiser: Denoiser, steps: Steps, key, num_samples, *, x_T=None, batch_size=None
) -> None:
    """Refuse what `denoiser.draw` and a run of the sampler cannot take; looks at shapes and counts.

    Raises:
      TypeError: an argument of another kind, such as a key in the place of the sampler.
      ValueError: counts below 1, noise that is none, times that the schedule does not have.
    """
    check_steps(denoiser, steps)
    check_key("key", key)
    check_count("num_samples", num_samples)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if x_T is not None:
        check_noise(denoiser, x_T)


def check_steps(denoiser: Denoiser, steps: Steps, what: str = "steps") -> None:
    """Refuse what is no sampler of the denoiser's schedule; `what` it is called.

    Raises:
      TypeError: no `Steps`.
      ValueError: times that its schedule does not have.
    """
    check_type(what, steps, Steps, remedy="such as ddim(denoiser.schedule, 50)")
    times = concrete(steps.t)
    if times is not None and isinstance(denoiser.schedule, DiscreteSchedule):
        last = denoiser.schedule.num_train_steps
        require(times.size and times.min() >= 0 and times.max() <= last, what,
                got=f"times up to {times.max() if times.size else 'none'}",
                expected=f"0 ... {last}, those of the denoiser's schedule",
                remedy="make the sampler of denoiser.schedule")  # fmt: skip


def check_quantized(q: Quantized) -> None:
    """Refuse what is no quantized denoiser."""
    check_type("q", q, Quantized, remedy="quantize(calibrate(denoiser, steps, key), 'W8A8')")


def check_run(q: Quantized, steps: Steps, run, **counts: int | None) -> None:
    """Refuse a run of another sampler or denoiser, and counts below 1 that are not None.

    Raises:
      TypeError: no `Quantized`, `Steps` or `Run`.
      ValueError: states of another number or shape.
    """
    check_quantized(q)
    check_steps(q.denoiser, steps)
    require(hasattr(run, "xs_hat"), "run", got=f"a {type(run).__name__}", expected="a Run",
            remedy="couple(q, steps, key)", error=TypeError)  # fmt: skip
    if q.denoiser.shape is not None:
        x_T = jax.ShapeDtypeStruct((run.xs.shape[1], *q.denoiser.shape), run.xs.dtype)
        states = (len(steps.t) + 1, *jax.eval_shape(steps.coeffs.start, x_T).shape)
        require(run.xs.shape == states, "run", got=f"states {list(run.xs.shape)}",
                expected=f"{list(states)} of this sampler and denoiser",
                remedy="couple(q, steps, key) with the same q and steps")  # fmt: skip
    for what, count in counts.items():
        if count is not None:
            check_count(what, count)


def check_noise(denoiser: Denoiser, x_T) -> None:
    """Refuse initial noise that is no array [num, *shape] of finite real numbers.

    Raises:
      ValueError: says which shape or numbers were got.
    """
    shape, dtype = jnp.shape(x_T), jnp.result_type(x_T)
    known = shape[1:] if denoiser.shape is None else denoiser.shape
    require(len(shape) >= 1 and shape[0] >= 1 and shape[1:] == known, "x_T",
            got=f"an array {list(shape)}", expected=f"[num, {', '.join(map(str, known))}]",
            remedy="draw it with denoiser.draw(key, num).x_T")  # fmt: skip
    require(jnp.issubdtype(dtype, jnp.floating), "x_T", got=f"an array of {dtype}",
            expected="real numbers", remedy="x_T.astype(jnp.float32)")  # fmt: skip
    values = concrete(x_T)
    require(values is None or bool(jnp.isfinite(values).all()), "x_T", got="NaN or infinity",
            expected="finite numbers", remedy="draw it with denoiser.draw(key, num).x_T",
            )  # fmt: skip


def arguments(denoiser: Denoiser, draw: Draw, t) -> tuple[Any, ...]:
    """Return (eps_fn, params, x, t[, cond]) of a denoiser at samples."""
    return denoiser.eps_fn, denoiser.params, draw.x_T, t, *as_arguments(draw.cond)


def check_cond(draw: Draw) -> None:
    """Refuse conditions of another number of samples."""
    for leaf in jax.tree.leaves(draw.cond):
        require(jnp.ndim(leaf) and leaf.shape[0] == len(draw.x_T), "cond",
                got=f"a leaf of shape {jnp.shape(leaf)}", expected=f"one entry for each of "
                f"{len(draw.x_T)} samples", remedy="use denoiser.draw_cond(key, num)")  # fmt: skip


def check_result(denoiser: Denoiser, draw: Draw, few: Draw, t) -> None:
    """Refuse a network whose result, at a few of the samples, is no prediction of x.

    What the network itself raises is raised, with a note of how it was called.
    """
    known = dataclasses.replace(denoiser, shape=draw.x_T.shape[1:])

    def result(draw):
        fn, *args = arguments(known, draw, t)
        return jax.eval_shape(fn, *args)

    try:
        out = result(few)
    except Exception as error:
        _check_batch(result, draw, few)
        asked = "net_fn(params, x, t)" if draw.cond is None else "net_fn(params, x, t, cond)"
        error.add_note(f"The network was called as {asked} with x {few.x_T.shape} and t [] or "
                       "[batch]. What belongs to a sample, such as its label, goes into "
                       "Denoiser(..., cond=).")  # fmt: skip
        raise
    require(jnp.issubdtype(out.dtype, jnp.floating), "network", got=f"a result of {out.dtype}",
            expected="real numbers", remedy="Denoiser(..., output=jnp.real) takes the real part",
            )  # fmt: skip


def _check_batch(result, draw: Draw, few: Draw) -> None:
    """Refuse a network that takes batches of the caller's size alone."""
    try:
        result(draw)
    except Exception:
        return
    require(False, "network", got=f"one that takes {len(draw.x_T)} samples but not {len(few.x_T)}",
            expected="any number of samples", remedy="what belongs to a sample goes into "
            "Denoiser(..., cond=), not into a closure")  # fmt: skip
