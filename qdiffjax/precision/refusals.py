"""Networks that cannot be sampled are refused in words, before any long work."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.denoiser import Denoiser, Draw


def arguments(denoiser: Denoiser, draw: Draw, t) -> tuple[Any, ...]:
    """Return (eps_fn, params, x, t[, cond]) of a denoiser at samples."""
    rest = () if draw.cond is None else (draw.cond,)
    return denoiser.eps_fn, denoiser.params, draw.x_T, t, *rest


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
