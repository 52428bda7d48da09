"""Which sites may be low: what each alone costs the samples, beside what is usually taken for it.

alone        RMSE of the final samples with this site alone rounded: a run, or first order
fisher       eq. 15 of the survey, for each example, times the squared rounding error
weight_rmse  what rounding does to the weight
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_key, check_type, require
from qdiffjax._tables import Table
from qdiffjax._typing import Key
from qdiffjax.compiling import compiled
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import Steps
from qdiffjax.diffusion.losses import add_noise
from qdiffjax.precision import Quantized, SiteQuant, quantized_call
from qdiffjax.strategies.algebra import ErrorAlgebra
from qdiffjax.strategies.choices import Choices
from qdiffjax.strategies.states import chosen_calls
from qdiffjax.strategies.trials import Trial

RANKED = ("fisher", "weight_rmse")


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Sensitivity:
    """What rounding one site alone does; all [sites, choices], infinite where not offered.

    Attributes:
      choices: of the sites.
      alone: RMSE of the final samples.
      fisher: sqrt(tr F_l |dw|^2 / n), F_l = E[g g^T] of the gradient of an example's loss in the n
        elements of the weight: the predicted rise of the loss's root, up to a constant.
    """

    choices: Choices
    alone: np.ndarray
    fisher: np.ndarray

    @property
    def weight_rmse(self) -> np.ndarray:
        """RMS of dw."""
        return self.choices.weight_rmse

    def spearman(self, other: str, choice: str) -> float:
        """Return the rank correlation of `alone` with "fisher" or "weight_rmse" over the sites."""
        from scipy import stats

        require(other in RANKED, "spearman", got=repr(other), expected=f"one of {RANKED}",
                remedy="alone is what they are ranked against")  # fmt: skip
        column = self.choices.names.index(choice)
        pair = (self.alone[:, column], getattr(self, other)[:, column])
        return float(stats.spearmanr(*pair).statistic)

    def table(self, choice: str) -> Table:
        """Return the sites at one choice, the most sensitive first."""
        self.choices.pick(choice)
        column = self.choices.names.index(choice)
        order = np.argsort(-self.alone[:, column], kind="stable")
        rows = tuple(
            (self.choices.sites[i], int(self.choices.num_weights[i]),
             *(float(a[i, column]) for a in (self.alone, self.fisher, self.weight_rmse)))
            for i in order
        )  # fmt: skip
        return Table(f"Each site alone at {choice}",
                     ("site", "weights", "RMSE of samples", "Fisher", "RMSE of the weight"),
                     rows)  # fmt: skip

    def __repr__(self):
        return str(self.table(self.choices.names[0]))


def sensitivity_of(
    algebra: ErrorAlgebra, noise: Trial, key: Key, *, num_times: int = 8
) -> Sensitivity:
    """Return the sensitivity of every site at every choice, three ways.

        fisher_l(b)^2 = E[|d L / d w_l|^2] |w_l(b) - w_l|^2 / n_l,   L = |eps_theta(x_t) - eps|^2

    Survey, eq. 15, taken for each example: the gradient of the *expected* loss is zero at a
    minimum. Examples are full-precision samples x_0 of the trial, each at some of the sampler's
    times with fresh noise.

    Args:
      algebra: in full precision, whose diagonal is `alone`.
      noise: of the examples.
      key: of the noise that is added to them.
      num_times: evenly spread among the sampler's.

    Raises:
      ValueError: an algebra around a pick, in which no site is alone.
    """
    check_type("algebra", algebra, ErrorAlgebra, remedy="error_algebra(noise)")
    check_type("noise", noise, Trial, remedy="trial(choices, key, num_samples)")
    check_key("key", key)
    require(algebra.around is None, "algebra", got="one around a pick",
            expected="sites alone in full precision", remedy="error_algebra(noise)")  # fmt: skip
    traces = _traces(noise, key, num_times, _squares)
    return Sensitivity(algebra.choices, algebra.alone,
                       np.sqrt(traces)[:, None] * algebra.choices.weight_rmse)  # fmt: skip


def hessian_traces(noise: Trial, key: Key, *, num_times: int = 8) -> np.ndarray:
    """Return the trace of the Hessian of the denoising loss in the weight of every site [sites].

        tr H_l = E[v_l . (H v)_l],   v of random signs,   H of L = |eps_theta(x_t) - eps|^2

    one Hessian-vector product of all weights for each example and time (Hutchinson 1989), at about
    six network calls. HAWQ-V2 (Dong et al. 2020) takes tr H_l |dw|^2 / n_l for what a choice costs,
    n_l elements; the expectation over examples can be negative by chance.

    Args:
      noise: of the examples, its full-precision samples.
      key: of the noise that is added to them, and of the signs.
      num_times: evenly spread among the sampler's.
    """
    check_type("noise", noise, Trial, remedy="trial(choices, key, num_samples)")
    check_key("key", key)
    return _traces(noise, key, num_times, _curvature)


def _traces(noise: Trial, key: Key, num_times: int, of_loss: Callable) -> np.ndarray:
    choices, steps = noise.choices, noise.choices.steps
    check_count("num_times", num_times, most=len(steps.t))
    calls = chosen_calls(len(steps.t), num_times, None, None)
    weights = {m: choices.calibration.weights[m] for own in choices.members.values() for m in own}
    found = _program(of_loss)(choices.calibration.denoiser, weights, noise.full, noise.draw.cond,
                              steps, calls, key)  # fmt: skip
    return np.array([sum(float(found[m]) for m in choices.members[s]) for s in choices.sites])


@functools.cache
def _program(of_loss: Callable):
    return compiled(functools.partial(_over_examples, of_loss))


def _squares(loss_fn: Callable, weights, key):
    """Return |d L / d w|^2 of every weight."""
    return jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(loss_fn)(weights))


def _curvature(loss_fn: Callable, weights, key):
    """Return v . (H v) of every weight, v of random signs."""
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    signs = jax.tree.unflatten(tree, [
        jax.random.rademacher(k, w.shape, w.dtype) for k, w in zip(keys, leaves, strict=True)
    ])  # fmt: skip
    _, turned = jax.jvp(jax.grad(loss_fn), (weights,), (signs,))
    return jax.tree.map(lambda v, h: jnp.sum(v * h), signs, turned)


def _over_examples(of_loss, denoiser: Denoiser, weights, x_0, cond, steps: Steps, calls, key):
    """Return the mean of `of_loss` over examples and times, for every weight."""
    times = steps.times(x_0)

    def one(example):
        index, place, key = example
        x = x_0[index][None]
        own = None if cond is None else jax.tree.map(lambda a: a[index][None], cond)
        t, eps = times[place], jax.random.normal(key, x.shape, x.dtype)
        x_t = add_noise(x, eps, denoiser.schedule(t))

        def loss_fn(weights):
            q = Quantized(denoiser, {name: SiteQuant(w) for name, w in weights.items()})
            return jnp.sum((quantized_call(q.given(own))(x_t, t)[0] - eps) ** 2)

        return of_loss(loss_fn, weights, jax.random.fold_in(key, 1))

    index, place = (a.ravel() for a in jnp.meshgrid(jnp.arange(len(x_0)), calls, indexing="ij"))
    found = jax.lax.map(one, (index, place, jax.random.split(key, len(index))))
    return jax.tree.map(jnp.mean, found)
