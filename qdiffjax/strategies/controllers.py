"""Dynamic precision: recipes chosen for each sample at each step, from what the sampler sees."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array, Key, float_dtype
from qdiffjax.analysis.errors.prediction import root_mean_square
from qdiffjax.diffusion import Steps
from qdiffjax.strategies.stacks import Stack, run_stack

MOST = math.log(2)  # of what features say of an error: nobody is trusted beyond twice or half
LEAST = 1e-20  # below which a logarithm is not taken
SLACK = 1 + 1e-5  # of a tolerance: sums in float32 do not end where they were forecast


class Seen(NamedTuple):
    """What a sampler sees at no cost before it calls the network.

    x: the samples [batch, *shape]; eps, before: what the last call and the one before it predicted
    [batch, *shape], zeros where there was none; alpha, sigma: the level of x, each [].
    """

    x: Array
    eps: Array
    before: Array
    alpha: Array
    sigma: Array


def sampler_features(seen: Seen) -> Array:
    """Return numbers that may tell how much a sample errs [batch, 5].

        log |x|,  log |eps|,  log |eps - eps_before|,  log |x_0|,  mean of x_0

    with root mean squares of a sample and x_0 = (x - sigma eps) / alpha, where the run is heading.
    """
    x_0 = (seen.x - seen.sigma * seen.eps) / seen.alpha
    sizes = (seen.x, seen.eps, seen.eps - seen.before, x_0)
    logs = [jnp.log(jnp.maximum(root_mean_square(each), LEAST)) for each in sizes]
    return jnp.stack([*logs, jnp.mean(x_0.reshape(len(x_0), -1), -1)], -1)


class Controller(NamedTuple):
    """What chooses among K recipes, as data, leaves that begin with N are those of a call.

    A ladder of G schedules by step, the cheapest first, each of least forecast for its cost. Before
    call i a sample of difficulty m takes the cheapest rung that the rest of the run can afford:

        m = exp(slopes_i . (features - centers_i)), between 1/2 and 2,
        least g such that   spent + sum_{j >= i} adds[ladder[g, j], j] <= tolerance / m

    and the dearest if there is none; then spent += adds[ladder[g, i], i]. So a sample that is told
    to err more is given a smaller tolerance, and what was saved is spent later. Slopes of 0 make it
    a schedule by step. A tolerance of infinity takes the cheapest recipe, of 0 the dearest.

    Attributes:
      ladder: recipes by step [N, G].
      rest: forecast of what the steps from i on add to the error of a sample [N, G].
      adds: what a step at a recipe adds to it, over the dearest [N, K].
      centers, slopes: of the features [N, F].
      tolerance: of the forecast [].
    """

    ladder: Any
    rest: Any
    adds: Any
    centers: Any
    slopes: Any
    tolerance: Any

    @property
    def by_call(self) -> "Controller":
        """The same with a tolerance for each call, to be sliced."""
        return self._replace(tolerance=jnp.full(len(self.rest), self.tolerance, jnp.float32))


def decide(controller: Controller, spent: Array, features: Array) -> tuple[Array, Array]:
    """Return the recipe of each sample [batch] and what is spent then [batch].

    Args:
      controller: of one call, leaves without N.
      spent: forecast of what the calls so far have added [batch].
      features: see `sampler_features` [batch, F].
    """
    told = (features - controller.centers[None]) @ controller.slopes
    difficulty = jnp.exp(jnp.clip(told, -MOST, MOST))
    left = SLACK * controller.tolerance / difficulty - spent
    fits = controller.rest[None] <= left[:, None]
    rung = jnp.where(jnp.any(fits, 1), jnp.argmax(fits, 1), fits.shape[1] - 1)
    index = controller.ladder[rung]
    return index, spent + controller.adds[index]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("stack", "controller", "levels", "costs"),
    meta_fields=("features_fn",),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Dynamic:
    """A denoiser whose samples choose their recipes as they run; a pytree, so jit takes it.

    Attributes:
      stack: the recipes, the cheapest first.
      controller: what chooses.
      levels: (alpha, sigma) of the calls, each [N].
      costs: of a call at each recipe [K].
      features_fn: what is seen; static.
    """

    stack: Stack
    controller: Controller
    levels: tuple[Any, Any]
    costs: Any
    features_fn: Callable[[Seen], Array] = sampler_features

    def given(self, cond) -> "Dynamic":
        """Return it with the conditions of other samples, leaves [batch, ...], or None."""
        return dataclasses.replace(self, stack=self.stack.given(cond))

    def within(self, tolerance) -> "Dynamic":
        """Return it with another tolerance of the forecast."""
        tolerance = jnp.asarray(tolerance, jnp.float32)
        return dataclasses.replace(self, controller=self.controller._replace(tolerance=tolerance))

    def blind(self) -> "Dynamic":
        """Return it with slopes of 0, which makes it a schedule by step."""
        slopes = jnp.zeros_like(self.controller.slopes)
        return dataclasses.replace(self, controller=self.controller._replace(slopes=slopes))

    @property
    def schedules(self) -> np.ndarray:
        """The ladder, recipes by step [G, N], the cheapest first."""
        return np.asarray(self.controller.ladder).T

    @property
    def forecasts(self) -> np.ndarray:
        """What each schedule of the ladder adds to the error by forecast [G]."""
        return np.asarray(self.controller.rest[0])


class Paced(NamedTuple):
    """Samples x_0 [batch, *shape], the recipes that they took and what decided, by call.

    choices: [N, batch]; features: [N, batch, F].
    """

    x_0: Array
    choices: Array
    features: Array

    def cost(self, costs) -> Array:
        """Return the mean cost of a call of each sample [batch]; costs: of the recipes [K]."""
        return jnp.mean(jnp.asarray(costs)[self.choices], 0)


def run_dynamic(
    dynamic: Dynamic, x_T: Array, steps: Steps, key: Key | None = None, *, choices=None
) -> Paced:
    """Return samples whose recipes are chosen as they run, in one compiled loop.

    No sample looks at another one. Roundings at random are drawn alike for all samples.

    Args:
      dynamic: with the conditions of these samples.
      x_T: initial noise [batch, *shape].
      steps: the sampler that it was made for; key: of its own noise, None where it adds none.
      choices: what is taken in place of the controller's choices [N, batch], to see features there.

    Raises:
      ValueError: a sampler with memory, or of another number of steps.
    """
    num = len(dynamic.controller.rest)
    require(len(steps.t) == num, "steps", got=f"{len(steps.t)} calls", expected=f"{num}, as fitted",
            remedy="fit it to this sampler")  # fmt: skip

    def decide_fn(slices, held, x, eps):
        own, level, given = slices
        spent, before = held
        told = dynamic.features_fn(Seen(x, eps, before, *(each.astype(x.dtype) for each in level)))
        told = told.astype(jnp.float32)
        index, spent = decide(own, spent, told)
        return index if given is None else given, (spent, eps), told

    held = jnp.zeros(len(x_T), jnp.float32), jnp.zeros(jnp.shape(x_T), float_dtype(x_T))
    slices = dynamic.controller.by_call, dynamic.levels, choices
    run = run_stack(dynamic.stack, decide_fn, slices, held, x_T, steps, key)
    return Paced(run.x_0, *run.outputs)
