"""Controllers fitted to noise, and tolerances that are shown to be kept."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import OPEN_SHARE, check_count, check_number, check_numbers, checked, require
from qdiffjax._typing import Array, Key
from qdiffjax.analysis import guarantees
from qdiffjax.analysis.errors.prediction import root_mean_square
from qdiffjax.analysis.guarantees import FixedSequence
from qdiffjax.compiling import compiled
from qdiffjax.denoiser import Draw
from qdiffjax.diffusion import Steps
from qdiffjax.precision import Quantized, final_samples, marks_of
from qdiffjax.strategies.allocation import choose
from qdiffjax.strategies.controllers import (
    LEAST,
    Controller,
    Dynamic,
    Paced,
    Seen,
    run_dynamic,
    sampler_features,
)
from qdiffjax.strategies.stacks import Stack, in_order, run_choices, stacked
from qdiffjax.strategies.trials import batches

TINY = 1e-9  # spread below which a feature does not vary
REACH = 5  # of a ladder, how far a random rung may be away
RIDGE = 0.1  # of the number of samples: how far slopes are drawn to 0
SHARE, DELTA = 0.05, 0.05  # of samples that may exceed a tolerance; probability of a bad draw


class Reference(NamedTuple):
    """Noise on which recipes run, with what full precision makes of it.

    x_T: [num, *shape]; cond: conditions, leaves [num, ...], or None; x_0: samples in full precision
    [num, *shape]; steps: the sampler; key: of its own noise, or None; batch_size: of a run.
    """

    x_T: Any
    cond: Any
    x_0: np.ndarray
    steps: Steps
    key: Key | None
    batch_size: int


@checked(batch_size=check_count)
def reference(
    q: Quantized, steps: Steps, x_T, *, cond=None, key: Key | None = None, batch_size: int = 64
) -> Reference:
    """Return noise x_T [num, *shape] with its samples in full precision; costs a run of it."""
    check_numbers("x_T", x_T, least_rank=2)
    empty = Reference(x_T, cond, np.zeros(0), steps, key, batch_size)
    return empty._replace(x_0=_in_parts(empty, lambda cond, x, key, _: _full()(
        q.given(cond), x, steps, key
    )))  # fmt: skip


class Scored(NamedTuple):
    """Errors of samples to full precision, RMS [num], and the recipes that they took [N, num]."""

    errors: np.ndarray
    choices: np.ndarray
    features: np.ndarray | None = None


def score_dynamic(dynamic: Dynamic, noise: Reference) -> Scored:
    """Return the errors and choices of samples of fresh noise.

    Raises:
      ValueError: noise that it was fitted to, or that its tolerance was chosen on.
    """
    dynamic.stack.first.noise.check_fresh(marks_of(x_T=noise.x_T), "noise")
    return _scored(dynamic, noise)


def score_choices(stack: Stack, choice, noise: Reference) -> np.ndarray:
    """Return the errors [num] of samples that all take one recipe by step [N]."""
    return _errors(_final(stack, choice, noise), noise)


def dynamic(
    qs: Sequence[Quantized],
    costs,
    noise: Reference,
    tolerance: float,
    *,
    num_rungs: int = 21,
    num_forecast: int = 16,
    features_fn: Callable[[Seen], Array] = sampler_features,
) -> Dynamic:
    """Return recipes with a controller that is fitted to noise; its tolerance is to be chosen.

    What a step adds is measured: that step at a recipe, all others at the dearest. The ladder has
    schedules by step of least sum of these (`choose`): errors are taken to add up, which those of
    nearest rounding nearly do, for they keep their signs along a run. Slopes are a ridge regression
    of the log of final errors, of the cheapest schedule with 95 % of these samples within the
    tolerance, on the features of each call of another run, whose samples take rungs about that one
    at random: a width leaves its trace in what is seen, which must not be taken for the sample's.
    Costs K N runs of num_forecast noises, and a few of all.

    Args:
      qs: recipes of one denoiser, the cheapest first.
      costs: of a call at each [K], such as bit-operations.
      noise: to be fitted to, see `reference`.
      tolerance: of the RMSE of a sample to full precision.
      num_rungs: of the ladder, at most; num_forecast: of the noises on which each step is measured.
      features_fn: (Seen) -> [batch, F], what may tell how much a sample errs.

    Raises:
      ValueError: costs that do not rise; what `stacked` refuses.
    """
    costs = np.asarray(costs, np.float64)
    check_number("tolerance", tolerance, above=0)
    check_count("num_rungs", num_rungs, least=2)
    check_count("num_forecast", num_forecast)
    require(costs.shape == (len(qs),) and bool(np.all(np.diff(costs) > 0)), "costs",
            got=costs.tolist(), expected=f"{len(qs)} costs that rise",
            remedy="give the cheapest recipe first")  # fmt: skip
    steps = noise.steps
    stack = stacked(qs, steps)
    stack.first.noise.check_fresh(marks_of(x_T=noise.x_T), "noise")
    stack = stack.marked(marks_of(x_T=noise.x_T))
    adds = step_errors(stack, len(qs), first_of(noise, num_forecast))
    ladder = schedule_ladder(adds, costs, num_rungs)
    parts = np.take_along_axis(adds.T[None], ladder[:, :, None], 2)[:, :, 0]  # [G, N]
    rest = np.cumsum(parts[:, ::-1], 1)[:, ::-1]
    level = stack.first.denoiser.schedule(steps.times(noise.x_T))
    flat = np.zeros((len(steps.t), _num_features(features_fn, noise.x_T)))
    made = Controller(ladder.T.astype(np.int32), *(
        np.asarray(a, np.float32) for a in (rest.T, adds.T, flat, flat, 0.0)
    ))  # fmt: skip
    made = jax.tree.map(jnp.asarray, made)
    bare = Dynamic(stack, made, (level.alpha, level.sigma), costs, features_fn)
    rung = _cheapest_within(bare, noise, tolerance)
    errors = score_choices(stack, ladder[rung], noise)
    centers, slopes = _slopes(errors, _explored(bare, rung, noise))
    fitted = made._replace(centers=jnp.asarray(centers, jnp.float32),
                           slopes=jnp.asarray(slopes, jnp.float32))  # fmt: skip
    return dataclasses.replace(bare, controller=fitted).within(rest[rung, 0])


@checked(share=OPEN_SHARE, delta=OPEN_SHARE)
def within_budget(
    dynamic: Dynamic,
    tolerances: Sequence[float],
    noise: Reference,
    tolerance: float,
    share: float = SHARE,
    delta: float = DELTA,
) -> tuple[Dynamic, FixedSequence]:
    """Return it with the last tolerance of the forecast that is shown to keep the real one.

    Tested from the smallest on until the first failure, see `guarantees.fixed_sequence`: with
    probability 1 - delta over this noise at most `share` of all samples err more than `tolerance`,
    whatever the forecast is worth. What none of them keeps, the dearest recipe is left with.

    Args:
      dynamic: fitted to other noise.
      tolerances: of the forecast, fixed without this noise.
      noise: fresh, see `reference`.
      tolerance: of the RMSE of a sample.
      share: of samples that may err more; delta: probability of a bad draw.

    Raises:
      ValueError: tolerances that do not rise; noise that was fitted to.
    """
    require(len(tolerances) and bool(np.all(np.diff(tolerances) > 0)), "tolerances",
            got=list(tolerances), expected="numbers that rise",
            remedy="begin with the smallest")  # fmt: skip
    p_values: dict[str, float] = {}
    for each in tolerances:
        errors = score_dynamic(dynamic.within(each), noise).errors
        p_values[f"{each:.6g}"] = float(guarantees.share_p_value(errors, tolerance, share))
        if p_values[f"{each:.6g}"] > delta:
            break
    tests = guarantees.fixed_sequence(p_values, delta)
    last = tolerances[len(tests.passed) - 1] if tests.passed else 0.0
    marked = dataclasses.replace(dynamic, stack=dynamic.stack.marked(marks_of(x_T=noise.x_T)))
    return marked.within(last), tests


def step_errors(stack: Stack, num_recipes: int, noise: Reference) -> np.ndarray:
    """Return what a step at a recipe adds to samples beside the dearest, RMS [K, N]."""
    num, dearest = len(noise.steps.t), num_recipes - 1
    plain = np.full(num, dearest)
    x_0 = _final(stack, plain, noise)
    adds = np.zeros((num_recipes, num))
    for k in range(dearest):
        for i in range(num):
            choice = plain.copy()
            choice[i] = k
            adds[k, i] = np.sqrt(np.mean((_final(stack, choice, noise) - x_0) ** 2))
    return adds


def schedule_ladder(adds, costs, num_rungs: int) -> np.ndarray:
    """Return schedules by step [G, N] of least sum of `adds` [K, N], the cheapest first.

    Budgets are even between all steps at the cheapest recipe and all at the dearest, which are its
    ends; costs [K]. Schedules that repeat are left out.
    """
    num = adds.shape[1]
    table = np.tile(np.asarray(costs, float), (num, 1))
    budgets = np.linspace(num * costs[0], num * costs[-1], num_rungs)[1:-1]
    rows = [np.zeros(num, int), *(choose(table, adds.T, float(b)).choice for b in budgets),
            np.full(num, len(costs) - 1)]  # fmt: skip
    return np.array(list(dict.fromkeys(tuple(int(k) for k in row) for row in rows)))


def first_of(noise: Reference, num: int) -> Reference:
    """Return the first of these noises."""
    x_T, cond, x_0 = jax.tree.map(lambda a: a[:num], (noise.x_T, noise.cond, noise.x_0))
    return noise._replace(x_T=x_T, cond=cond, x_0=x_0)


def _scored(dynamic: Dynamic, noise: Reference) -> Scored:
    paced = _in_parts(noise, lambda cond, x, key, _: _paced()(
        dynamic.given(cond), x, noise.steps, key
    ))  # fmt: skip
    return Scored(_errors(paced.x_0, noise), paced.choices, paced.features)


def _final(stack: Stack, choice, noise: Reference) -> np.ndarray:
    return _in_parts(noise, lambda cond, x, key, _: _chosen()(
        stack.given(cond), in_order(choice, len(x)), x, noise.steps, key
    ))  # fmt: skip


def _errors(x_0: np.ndarray, noise: Reference) -> np.ndarray:
    errors = np.asarray(root_mean_square(jnp.asarray(x_0 - noise.x_0)), np.float64)
    require(bool(np.isfinite(errors).all()), "errors", got="samples with NaN",
            expected="finite samples",
            remedy="check parameters, sampler and recipes")  # fmt: skip
    return errors


def _cheapest_within(dynamic: Dynamic, noise: Reference, tolerance: float) -> int:
    """Return the cheapest rung with 95 % of the samples within the tolerance, else the dearest."""
    low, high = 0, len(dynamic.schedules) - 1
    while low < high:  # errors are taken to fall along the ladder
        middle = (low + high) // 2
        errors = score_choices(dynamic.stack, dynamic.schedules[middle], noise)
        holds = np.mean(errors <= tolerance) >= 1 - SHARE
        low, high = (low, middle) if holds else (middle + 1, high)
    return low


def _explored(dynamic: Dynamic, rung: int, noise: Reference) -> np.ndarray:
    """Return features [N, num, F] where samples take rungs about this one at random."""
    ladder = dynamic.schedules
    num, reach = len(noise.x_T), max(len(ladder) // REACH, 1)
    rng = np.random.default_rng(num)
    rungs = np.clip(rung + rng.integers(-reach, reach + 1, (ladder.shape[1], num)), 0,
                    len(ladder) - 1)  # fmt: skip
    choices = np.take_along_axis(ladder.T, rungs, 1).astype(np.int32)
    return _in_parts(noise, lambda cond, x, key, part: _seen()(
        dynamic.given(cond), choices[:, part], x, noise.steps, key
    )).features  # fmt: skip


def _slopes(errors: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centers and slopes [N, F] of log errors [num] on features, by ridge regression."""
    features = np.asarray(features, np.float64)
    logs = np.log(np.maximum(errors, LEAST))
    centers, spread = features.mean(1), features.std(1)
    spread = np.where(spread > TINY, spread, np.inf)  # what does not vary says nothing
    scaled = (features - centers[:, None]) / spread[:, None]
    eye = RIDGE * len(logs) * np.eye(features.shape[2])
    gram = np.einsum("nsf,nsg->nfg", scaled, scaled) + eye
    right = np.einsum("nsf,s->nf", scaled, logs - logs.mean())
    return centers, np.linalg.solve(gram, right[..., None])[..., 0] / spread


def _in_parts(noise: Reference, run_fn: Callable) -> Any:
    """Return run_fn(cond, x_T, key, part) of all samples, a batch at a time.

    Samples are the first axis of a result, and the second of what is by call.
    """
    parts: list[Any] = []
    draw = Draw(noise.x_T, noise.cond)
    for part, (x_T, cond), key in batches(draw, noise.key, noise.batch_size):
        with jax.default_matmul_precision("highest"):
            found = run_fn(cond, x_T, key, part)
            parts.append(jax.tree.map(np.asarray, found))
    if not isinstance(parts[0], Paced):
        return np.concatenate(parts)
    joined: list[Any] = [np.concatenate([p[k] for p in parts], int(k > 0)) for k in range(3)]
    return Paced(*joined)


@functools.cache
def _full():
    return compiled(lambda q, x, steps, key: final_samples(q, x, steps, key, in_full=True))


@functools.cache
def _chosen():
    return compiled(lambda *args: run_choices(*args).x_0)


@functools.cache
def _paced():
    return compiled(run_dynamic)


def _num_features(features_fn: Callable, x_T) -> int:
    """Return how many numbers a sampler sees."""
    x = jnp.asarray(x_T[:1])
    level = jnp.ones((), x.dtype)
    return jax.eval_shape(features_fn, Seen(x, x, x, level, level)).shape[1]


@functools.cache
def _seen():
    return compiled(lambda dynamic, choices, x, steps, key: run_dynamic(
        dynamic, x, steps, key, choices=choices
    ))  # fmt: skip
