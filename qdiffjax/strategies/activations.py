"""Cures of activations: static grids that clip, and a time path that need not be rounded."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import precision, quant
from qdiffjax._checks import check_count, checked, require
from qdiffjax._typing import float_dtype
from qdiffjax.precision import Series
from qdiffjax.quant import ActivationGrid, BlockFormat
from qdiffjax.quant.grids import is_affine
from qdiffjax.sites import rules, transform
from qdiffjax.strategies.drafts import CLIP, LEAVE, Cure, Draft

MOST = 4096  # numbers of an operand that a call's grid is fitted to
STRIDE = 1_000_003


@checked(num_ranges=check_count)
def static_clips(num_ranges: int = 1) -> Cure:
    """Return the cure that gives activations static grids of least squared error.

        argmin over shrunken ranges of E (Q(x) - x)^2,   x of the calls of one range

    One range of the sampler's calls is a scale for all steps (Q-Diffusion); as many as there are
    calls a scale for each (QuEST, EfficientDM, TFMQ), learned from what full-precision runs show.
    Costs a pass over the states.

    Raises (when applied):
      ValueError: a range of calls that no state of the draft is in; another basis; no activation
        that is rounded, alike at all steps, but in blocks or by difference.
    """

    def check(draft: Draft) -> None:
        grids = [grid for each in draft.site_inputs().values() for grid in each.activations]
        require(any(map(_takes_scale, grids)), "static clips",
                got="no activation whose scale can be static",
                expected="one that is rounded, alike at all steps, and neither in blocks nor by "
                "difference, which find their own scales",
                remedy="a recipe such as W4A8")  # fmt: skip
        place_of(draft)

    def place_of(draft: Draft) -> np.ndarray:
        """Return the range that each state of the draft is in [calls]."""
        num_calls = draft.steps.t.shape[0]
        require(num_ranges <= num_calls, "num_ranges", got=f"{num_ranges} of {num_calls} calls",
                expected="at least a call in each", remedy="take fewer")  # fmt: skip
        place = np.asarray(draft.states.call) * num_ranges // num_calls
        missing = sorted(set(range(num_ranges)) - set(place.tolist()))
        require(not missing, "num_ranges", got=f"no state in ranges {missing[:3]} of {num_ranges}",
                expected="calls of the draft in each",
                remedy=f"draft(..., num_calls={num_calls})")  # fmt: skip
        return place

    def apply(draft: Draft) -> Draft:
        require(not any(a.bases for a in draft.around.values()), "static clips",
                got="activations in another basis", expected="those of the network",
                remedy="choose one of the two")  # fmt: skip
        inputs, num_calls, place = draft.site_inputs(), draft.steps.t.shape[0], place_of(draft)
        numbers, grids = operand_numbers(draft), dict(draft.grids)
        which = np.arange(num_calls) * num_ranges // num_calls
        for name, each in inputs.items():
            is_open = name not in grids  # no other cure has decided
            if is_open and any(map(_takes_scale, each.activations)):
                grids[name] = tuple(
                    _clipped(grid, x, place, which)
                    for grid, x in zip(each.activations, numbers[name], strict=False)
                )
        done = dataclasses.replace(draft, grids=grids)
        return done.billed(evaluations=draft.states.num)

    ranges = f" in {num_ranges} ranges" if num_ranges > 1 else ""
    return Cure(f"static clips{ranges}", CLIP, apply, check)


def _takes_scale(grid: Any) -> bool:
    is_grid = isinstance(grid, ActivationGrid) and not isinstance(grid.format, BlockFormat)
    return is_grid and not grid.difference


def _clipped(grid: Any, x, place: np.ndarray, which: np.ndarray):
    if not _takes_scale(grid):
        return grid
    num = int(place.max()) + 1
    rows = [x[np.flatnonzero(place == k)].reshape(-1) for k in range(num)]
    found = [_least_squares(row, grid.format) for row in rows]
    scale = jnp.stack([scale for scale, _ in found])
    zeros = [zero for _, zero in found if zero is not None]
    zero = jnp.stack(zeros) if zeros else None
    place_of = 0 if num == 1 else which
    series = dataclasses.replace(
        grid, scale=scale[place_of], zero_point=None if zero is None else zero[place_of]
    )
    if num == 1:
        return series
    bits = getattr(grid.format, "bits", None)
    if isinstance(bits, jax.Array):  # data, of which a series has one for each call
        format = dataclasses.replace(grid.format, bits=jnp.broadcast_to(bits, which.shape))
        series = dataclasses.replace(series, format=format)
    return Series(series)


@jax.jit
def _least_squares(x, format):
    scale, zero = quant.mse(x, format=format, symmetric=not is_affine(format))
    return scale.reshape(()), None if zero is None else zero.reshape(())


def operand_numbers(draft: Draft) -> dict[str, tuple]:
    """Return some numbers of every activation operand at every state [calls, at most 4096]."""

    def some(x):
        # A large prime as stride meets all channels alike, whatever their number.
        places = np.arange(min(MOST, x.size)) * STRIDE % x.size
        return x.reshape(-1)[places].astype(float_dtype(x))

    return _operands(draft, some)


def _operands(draft: Draft, fn) -> dict[str, tuple]:
    """Return fn(x) of every activation operand at every state, leaves [calls, ...]."""
    denoiser = draft.denoiser
    cond = precision.condition(precision.Quantized(denoiser, {}), draft.states.x[0])

    g = transform(denoiser.eps_fn, rules.observe(fn))
    seen = jax.jit(lambda params, states, cond: jax.lax.map(
        lambda s: g(params, s.x, s.t, *cond)[1], states
    ))  # fmt: skip
    return seen(denoiser.params, draft.states, cond)


def time_path(draft: Draft) -> tuple[str, ...]:
    """Return the sites whose operands depend on the time alone, the same for every sample.

    Found by looking: samples of unlike conditions, at every state of the draft, give equal
    operands, or the operands have no axis of samples. Costs an evaluation a state and sample, see
    `_unlike`.
    """
    num = draft.states.x.shape[1]
    require(num >= 2, "states", got=f"{num} sample", expected="at least 2 to compare",
            remedy="draft(..., num_samples=2)")  # fmt: skip

    def operands_of(k: int) -> dict[str, tuple]:
        own = slice(k, k + 1)
        one = draft.states._replace(x=draft.states.x[:, own])
        cond = jax.tree.map(lambda a: a[own], draft.cond)
        part = dataclasses.replace(draft, states=one, cond=cond)
        return _operands(part, lambda x: x.astype(float_dtype(x)))

    first, *others = map(operands_of, _unlike(draft))
    return tuple(
        name for name, operands in first.items()
        if draft.sites[name].weight is not None
        and all(bool(jnp.array_equal(a, b)) for other in others
                for a, b in zip(operands, other[name], strict=True))
    )  # fmt: skip


def _unlike(draft: Draft) -> list[int]:
    """Return the first sample, and for each condition the first with another than that has.

    The second where no condition differs: two samples, unless there are several conditions.
    """
    others = []
    for leaf in map(np.asarray, jax.tree.leaves(draft.cond)):
        differs = np.any((leaf != leaf[:1]).reshape(len(leaf), -1), 1)
        others += [int(np.argmax(differs))] if differs.any() else []
    return [0, *dict.fromkeys(others or [1])]


def cached_time_path() -> Cure:
    """Return the cure that leaves what depends on the time alone in full precision.

    TFMQ (Huang et al. 2024) reconstructs the temporal features by themselves. For a sampler whose
    times are known beforehand they are a table of N rows, so that full precision costs no
    multiplication at run time: the sites are left out of the recipe.

    Warns (when applied):
      DiagnosisWarning: no product that is rounded depends on the time alone.
    """

    def apply(draft: Draft) -> Draft:
        plain = draft.plain | frozenset(time_path(draft))
        if not plain & draft.site_inputs().keys():
            text = "time path cached: no rounded product depends on the time alone; nothing changes"
            warnings.warn(text, precision.DiagnosisWarning, stacklevel=2)
        done = dataclasses.replace(draft, plain=plain)
        return done.billed(evaluations=len(_unlike(draft)) * draft.states.x.shape[0])

    return Cure("time path cached", LEAVE, apply)
