"""Which recipe to take within a budget: found on some noise, checked on other.

recommend(calibration, steps, 4.5, key=key) -> Recommendation       its `recipe` is for `quantize`
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import estimates
from qdiffjax._checks import OPEN_SHARE, check_count, check_key, check_number, check_type, require
from qdiffjax._tables import Page, Table, number
from qdiffjax._typing import Key
from qdiffjax.diffusion import Steps
from qdiffjax.estimates import Estimate
from qdiffjax.precision import Recipe
from qdiffjax.precision.calibration import Calibration
from qdiffjax.precision.settings import SITES
from qdiffjax.strategies import search
from qdiffjax.strategies.algebra import ErrorAlgebra, error_algebra
from qdiffjax.strategies.budgets import Budget
from qdiffjax.strategies.choices import BITS, STORED, Choices, Offered, offer
from qdiffjax.strategies.sketch import check_noiseless, sketched_algebra
from qdiffjax.strategies.trials import trial

NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Recommendation:
    """A recipe within a budget, beside uniform precision on noise that neither has seen.

    Attributes:
      choices: what the sites could be.
      pick: what is recommended, by site: what was found, or uniform where that is not surely
        better.
      found: what the search found.
      uniform: the best uniform recipe within the budget; for a budget between two widths the next
        one at the smallest sites, as many as fit, where that is better.
      budget: of all sites, in bits or in `choices.unit`.
      predicted: RMSE of what was found, from the algebra.
      floor: no pick within the budget is predicted to have less.
      measured, beside: RMSE of what was found, and of uniform, with intervals.
      ratio: of the two, with its interval over the same noises.
      confidence: of the intervals.
      num_samples: fresh noises of the check.
      num_runs: sampling runs of the algebra's batch in all.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.array([[1.0, 0.3], [0.2, 0.7]]), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: jnp.tanh(x @ params["in"]) @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> found = qd.recommend(calibration, steps, "W4", ("W4",), key=jax.random.key(1),
      ...                      num_noises=4)
      >>> found.is_uniform  # there is nothing else
      True
    """

    choices: Choices
    pick: np.ndarray
    found: np.ndarray
    uniform: np.ndarray
    budget: float
    predicted: float
    floor: float
    measured: Estimate
    beside: Estimate
    ratio: Estimate
    confidence: float
    num_samples: int
    num_runs: float

    @property
    def is_uniform(self) -> bool:
        """Whether uniform is recommended, as nothing was found that is surely better."""
        return bool(np.array_equal(self.pick, self.uniform))

    @property
    def recipe(self) -> Recipe:
        """What is recommended, as `quantize` takes it and `Recipe.to_json` writes it."""
        return self.choices.recipe(self.pick)

    def table(self) -> Page:
        """Return what is recommended by site, and how it compares."""
        choices, names = self.choices, self.choices.names
        rows = tuple(
            (site, int(size), names[k], names[u])
            for site, size, k, u in zip(choices.sites, choices.num_weights, self.pick,
                                        self.uniform, strict=True)
        )  # fmt: skip
        bits = [choices.mean_bits(pick) for pick in (self.pick, self.uniform)]
        said = f"{bits[0]:.3f} bits a weight, uniform {bits[1]:.3f}"
        if choices.unit == BITS:
            said += f"; budget {self.budget / choices.num_weights.sum():.3f}."
        else:
            costs = (choices.total(self.pick), choices.total(self.uniform), self.budget)
            said += "; {:.4g} {unit}, uniform {:.4g}; budget {:.4g}.".format(
                *costs, unit=choices.unit
            )
        sites = Table("Recommended recipe", ("site", "weights", "choice", "uniform"), rows, (said,))
        level = f"{100 * self.confidence:g} %"
        gap = self.predicted / self.floor - 1 if self.floor > 0 else np.inf
        lines = (
            ("found", self.predicted, *_ends(self.measured)),
            ("uniform", None, *_ends(self.beside)),
            ("found / uniform", None, *_ends(self.ratio)),
        )
        verdict = (
            f"Uniform is recommended: the upper {level} limit of the ratio is not below 1."
            if self.is_uniform else "What was found is recommended."
        )  # fmt: skip
        notes = (verdict, f"Within the budget no recipe is predicted below {number(self.floor)}: "
                 f"the one found is at most {100 * gap:.0f} % above the best predicted.",
                 f"{self.num_samples} fresh noises; {self.num_runs:g} sampling runs.")  # fmt: skip
        errors = Table("RMSE of the final samples",
                       ("recipe", "predicted", "measured", f"low, {level}", "high"), lines,
                       notes)  # fmt: skip
        return Page((sites, errors))

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return float(estimate.value), float(estimate.low), float(estimate.high)


def recommend(
    calibration: Calibration,
    steps: Steps,
    budget: float | str | Budget,
    choices: Offered = (2, 3, 4, 5, 6, 8),
    *,
    key: Key,
    sites: Sequence[str] = SITES,
    counted: str = STORED,
    num_noises: int = 48,
    num_samples: int = 64,
    num_rounds: int = 0,
    num_probes: int | None = 6,
    confidence: float = 0.95,
    progress: bool = False,
) -> Recommendation:
    """Recommend a recipe within a budget: better than uniform on fresh noise, or uniform.

    The noise is of three parts. On the first the error vectors of every site at every choice are
    found (`sketched_algebra`), and the best sum within the budget is searched for
    (`choose_together`); both again around what was found, if rounds are asked for. On the second,
    half as large, the best is chosen of what the rounds found, and of the uniform recipes. On the
    third these two are measured. `planned_runs` says beforehand what that takes: 25 sampling runs
    by default.

    Args:
      calibration: see `calibrate`.
      steps: the sampler.
      budget: bits of a weight on average, scales included, see `offer`; or a choice such as "W4":
        what it takes at all sites; or bytes, operations, seconds or joules, from
        `strategies.budgets`.
      choices, sites, counted: see `strategies.offer`. Several choices of one width are free.
      key: of all noise.
      num_noises: of the first part, and samples of a run.
      num_samples: of the third.
      num_rounds: how often it is done again around what was found, which is worth its price where
        errors are large, as at 4 bits and below.
      num_probes: adjoint passes of a round, three sampling runs each; None has a run for each site
        and choice in their place (`error_algebra`), which takes every kind of choice and sampler.
      confidence: of the intervals.
      progress: say how many sampling runs it will take, and show a progress bar.

    Raises:
      ValueError: a budget below the cheapest recipe, a site without a format, probes of a sampler
        that adds noise.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.array([[1.0, 0.3], [0.2, 0.7]]), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: jnp.tanh(x @ params["in"]) @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> found = qd.recommend(calibration, steps, "W4", (3, 4, 5), key=jax.random.key(1),
      ...                      sites=("*",), num_noises=4)
      >>> found.choices.total(found.pick) <= found.budget
      True
      >>> q = qd.quantize(calibration, found.recipe)
    """
    check_type("steps", steps, Steps, remedy="such as ddim(schedule, 50)")
    check_key("key", key)
    check_count("num_noises", num_noises)
    check_count("num_samples", num_samples, least=2)
    check_count("num_rounds", num_rounds, least=0)
    if num_probes is not None:
        check_count("num_probes", num_probes)
        check_noiseless(steps)
    OPEN_SHARE("confidence", confidence)
    if not isinstance(budget, str | Budget):
        check_number("budget", budget, above=0)
    offered = offer(calibration, steps, choices, sites=sites, counted=counted)
    if isinstance(budget, Budget):
        offered = budget.priced(offered)
    total = total_of(offered, budget)
    keys = jax.random.split(key, 5)
    half = -(-num_noises // 2)
    first, second = trial(offered, keys[0], num_noises), trial(offered, keys[1], half)
    if progress:
        from tqdm import tqdm

        runs = planned_runs(offered, total, num_noises=num_noises, num_samples=num_samples,
                            num_rounds=num_rounds, num_probes=num_probes)  # fmt: skip
        tqdm.write(f"recommend: {runs:g} sampling runs of {num_noises} noises", sys.stderr)

    def algebra_fn(around=None):
        if num_probes is None:
            return error_algebra(first, around, progress=progress)
        return sketched_algebra(first, keys[3], num_probes=num_probes, around=around)

    algebras, picks = linearized_again(algebra_fn, algebra_fn(), total, num_rounds)
    num_runs: float = sum(each.num_runs for each in algebras)
    plain = _plain(algebras[0], total)
    best = min(range(len(picks)), key=lambda i: second.rmse(picks[i]))
    uniform = min(plain, key=second.rmse)
    num_runs += (1 + len(picks) + len(plain)) * half / num_noises
    fresh = trial(offered, keys[2], num_samples, half)
    errors = [fresh.errors(pick) for pick in (picks[best], uniform)]
    num_runs += 3 * num_samples / num_noises
    found, beside, ratio = compared(errors[0], errors[1], keys[4], confidence)
    is_better = float(ratio.high) < 1
    return Recommendation(
        offered, picks[best] if is_better else uniform, picks[best], uniform, total,
        algebras[best].predicted(picks[best]), lower_bound(algebras[best], total),
        found, beside, ratio, confidence, num_samples, num_runs,
    )  # fmt: skip


def planned_runs(
    choices: Choices, total: float, *, num_noises: int = 48, num_samples: int = 64,
    num_rounds: int = 0, num_probes: int | None = 6,
) -> float:  # fmt: skip
    """Return the sampling runs, of `num_noises` samples, that `recommend` takes at most.

        rounds (1 + 3 probes) + (1 + rounds + uniform recipes) / 2 + 3 num_samples / num_noises

    An adjoint pass counts as three runs, and None for the probes is a run for each site and choice,
    three where it rounds activations.
    """
    offered = np.isfinite(choices.bits)
    each = np.where(choices.rounds_activations, 3, 1)
    runs = 1 + (int((offered * each).sum()) if num_probes is None else 3 * num_probes)
    plain = len(uniform_picks(choices, total)) + (choices.unit != BITS)
    half = -(-num_noises // 2) / num_noises
    rounds = 1 + num_rounds
    return rounds * runs + (1 + rounds + plain) * half + 3 * num_samples / num_noises


def linearized_again(
    algebra_fn: Callable[[np.ndarray], ErrorAlgebra], algebra: ErrorAlgebra, total: float,
    num_rounds: int,
) -> tuple[list[ErrorAlgebra], list[np.ndarray]]:  # fmt: skip
    """Return algebras and the picks found in them, each `algebra_fn` of the pick before it."""
    algebras, picks = [algebra], [least_error(algebra, total).choice]
    for _ in range(num_rounds):
        algebras.append(algebra_fn(picks[-1]))
        picks.append(least_error(algebras[-1], total, starts=picks).choice)
    return algebras, picks


def total_of(choices: Choices, budget: float | str | Budget) -> float:
    """Return a budget in what the choices cost at all sites.

    Raises:
      ValueError: a choice that is not offered, or less than the cheapest recipe takes.
    """
    most = budget.most if isinstance(budget, Budget) else budget
    if isinstance(most, str):
        total = choices.total(choices.pick(most))
        require(np.isfinite(total), "budget", got=f"{most!r} at infinite {choices.unit}",
                expected="a choice that can be had at all sites",
                remedy="give a number")  # fmt: skip
        return total
    is_mean = not isinstance(budget, Budget)
    num = float(choices.num_weights.sum()) if is_mean else 1.0
    least = choices.least / num
    unit = "bits a weight" if is_mean else choices.unit
    require(least <= most, "budget", got=f"{most:g} {unit}",
            expected=f"at least {least:.6g}, the cheapest of these choices",
            remedy="raise it to that, or offer cheaper ones")  # fmt: skip
    return float(most) * num


def least_error(algebra: ErrorAlgebra, total: float, **options) -> search.Allocation:
    """Return the pick of least predicted error within a budget; see `search.choose_together`."""
    choices = algebra.choices
    return search.choose_together(choices.costs, algebra.gram, total, variances=algebra.variances,
                           **options)  # fmt: skip


def lower_bound(algebra: ErrorAlgebra, total: float) -> float:
    """Return an RMSE that no pick within a budget is predicted to be below."""
    found = search.relaxed_together(
        algebra.choices.costs, algebra.gram, total, variances=algebra.variances
    )
    return float(np.sqrt(found.error))


def uniform_picks(choices: Choices, total: float) -> list[np.ndarray]:
    """Return the uniform recipes within a budget that are as dear as any, and mixtures.

    Each dearest uniform one, and with what is left of the budget the next dearer choice at the
    smallest sites, as many as fit. Where no choice fits at all sites: the cheapest of each.
    """
    sums = np.array([column.sum() for column in choices.costs.T.copy()])
    fitting = sums[sums <= total]
    if not fitting.size:
        return [choices.costs.argmin(1)]
    dearest = np.flatnonzero(sums == fitting.max())
    picks = [np.full(len(choices.sites), k) for k in dearest]
    above = np.flatnonzero(np.isfinite(sums) & (sums > total))
    if not above.size:
        return picks
    following = above[np.argmin(sums[above])]
    for pick in list(picks):
        mixed = pick.copy()
        for site in np.argsort(choices.num_weights, kind="stable"):
            changed = mixed.copy()
            changed[site] = following
            mixed = changed if choices.total(changed) <= total else mixed
        if not np.array_equal(mixed, pick):
            picks.append(mixed)
    return picks


def _plain(algebra: ErrorAlgebra, total: float) -> list[np.ndarray]:
    """Return the uniform picks to compare with; of costs that are no bits, where dearer is not
    better, also the one of least predicted error.
    """
    choices = algebra.choices
    picks = uniform_picks(choices, total)
    if choices.unit == BITS:
        return picks
    alike = [np.full(len(choices.sites), k) for k, column in enumerate(choices.costs.T)
             if column.sum() <= total]  # fmt: skip
    best = min(alike, key=algebra.predicted, default=picks[0])
    is_new = not any(np.array_equal(best, pick) for pick in picks)
    return [*picks, best] if is_new else picks


def compared(
    errors, others, key: Key, confidence: float = 0.95
) -> tuple[Estimate, Estimate, Estimate]:
    """Return the RMSE of errors and others [samples] and the ratio, with paired intervals."""

    def rms(values):
        return jnp.sqrt(jnp.mean(values**2))

    def stat(a, b):
        ratio = jnp.where(rms(b) > 0, rms(a) / jnp.where(rms(b) > 0, rms(b), 1), 1.0)
        return jnp.stack([rms(a), rms(b), ratio])

    both = estimates.bootstrap(stat, jnp.asarray(errors), jnp.asarray(others), key=key,
                               num=NUM_RESAMPLES, confidence=confidence)  # fmt: skip
    return tuple(Estimate(*(part[i] for part in both)) for i in range(3))  # type: ignore
