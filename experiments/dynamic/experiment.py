"""Dynamic precision: widths chosen for each sample at each step, within a budget of error.

    python -m experiments.dynamic                              the shipped DiT
    python -m experiments.dynamic --families both
    python -m experiments.dynamic --checkpoint fashion_unet

All sites but the last, the edges and those that `--sites` leaves out have one width at a call:
`both` operands of a product, or `activations` beside weights of the widest. A controller
(`strategies.dynamic`) takes for each sample the cheapest schedule by step that its forecast can
afford, and sees what the sampler holds anyway: sizes of x, of the last prediction, of its change
and of where the run is heading. What it may spend is chosen on fresh noise so that all but
`share` of the samples err less than `tolerance` (`within_budget`, level 0.05). In the same way,
on the same noises, are chosen the cheapest recipe for all steps and the cheapest schedule by step
for all samples, of the same ladder: what neither looks at a sample can do. All three are scored
on other noises, by bit-operations of the sites that are quantized.

The ceiling is known before: an oracle takes for each sample the cheapest schedule of the ladder
that errs less than the tolerance, by what it errs in truth. Out of distribution (larger noise,
labels where there are classes) nothing is promised, and reported. Time is that of the controller
beside the same program with the same choices given as data.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.dynamic import plots
from experiments.harness import command, subject, timing
from experiments.harness.command import option
from qdiffjax import diffusion, precision, results, strategies
from qdiffjax._checks import require
from qdiffjax.analysis import guarantees
from qdiffjax.hardware import costs

DELTA = 0.05  # probability of a bad draw, and one less the level of limits
RATIOS = tuple(0.55 * 1.07**k for k in range(20))  # of the tolerance that was fitted
SAFER = 5  # rungs above the one that was fitted, where the test of schedules begins
SHIFTS = {"noise times 1.1": 1.1, "noise times 0.9": 0.9}
LABELS = "labels in turn"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    families: tuple[str, ...] = option(
        ("activations",), "What has the width of a call.", choices=("activations", "both")
    )
    bits: tuple[int, ...] = option((4, 5, 6, 7, 8), "Widths, rising.", least=2, most=12)
    tolerance: float = option(0.15, "RMSE to full precision that a sample may have.", above=0)
    share: float = option(0.05, "Of samples that may have more.", above=0, below=1)
    num_steps: int = option(20, "Steps of DDIM.", least=2)
    num_fit: int = option(192, "Noises that the controller is fitted to.", least=8)
    num_test: int = option(192, "Noises that budgets are chosen on.", least=1)
    num_samples: int = option(512, "Fresh noises that are reported.", least=2)
    num_oracle: int = option(96, "Of these, for the whole ladder, and for what is not promised.",
                             least=2)  # fmt: skip
    num_forecast: int = option(8, "Noises on which each step is measured.", least=1)
    num_rungs: int = option(31, "Schedules of the ladder, at most.", least=2)
    num_rounds: int = option(12, "Rounds of timing.", least=1)
    batch_size: int = option(64, "Samples of a run.", least=1)
    sites: tuple[str, ...] = option(subject.ALL_BUT_LAST, "Globs of sites to quantize.")
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse widths that do not rise, and too few noises to choose on."""
        require(
            len(self.bits) >= 2 and list(self.bits) == sorted(self.bits), got=f"bits = {self.bits}",
            expected="two or more that rise", remedy="give the narrowest first",
        )  # fmt: skip
        least = stats.binom.cdf(0, self.num_test, self.share)
        require(
            least <= DELTA, got=f"num_test = {self.num_test} for a share of {self.share:g}",
            expected=f"at least {int(np.ceil(np.log(DELTA) / np.log1p(-self.share)))}",
            remedy="draw more, or allow a larger share",
        )  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows of every family; touches no file.

    Parts of a family: what is chosen beforehand, what is chosen as samples run, and, of the first
    family, time. Options as `command.parts`.
    """
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    here = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed, takes_cond=True)

    @functools.cache
    def world(family: str):
        return World(config, here, family)

    parts = {f"{family}, {name}": functools.partial(method, family)
             for family in config.families
             for name, method in (("beforehand", lambda f: world(f).beforehand()),
                                  ("dynamic", lambda f: world(f).as_it_runs()))}  # fmt: skip
    first = config.families[0]
    parts[f"{first}, time"] = functools.partial(lambda f: world(f).time(), first)
    mark = results.fingerprint(dataclasses.asdict(config), here.mark())
    done = command.parts(parts, lambda part: parts[part](), mark, **options)
    return command.by_part(done), [row for _, row in done.values()]


class World:
    """The recipes of a family with their controller, and noises to fit, to choose and to score."""

    def __init__(self, config: Config, here: subject.Subject, family: str):
        self.config, self.family, self.denoiser = config, family, here.denoiser
        self.steps = diffusion.ddim(here.denoiser.schedule, config.num_steps)
        key = jax.random.key(config.seed)
        plain = strategies.time_path(
            strategies.draft(here.calibration, "W8A8", self.steps, key, num_samples=2)
        )
        globs = (*config.sites, *(f"!{name}" for name in ("input", "output", *plain)))
        widest = config.bits[-1]
        self.words = [f"W{b if family == 'both' else widest}A{b}" for b in config.bits]
        self.qs = [precision.quantize(here.calibration, words, sites=globs, activations="dynamic")
                   for words in self.words]  # fmt: skip
        self.costs = np.array([bit_operations(here.sites, q) for q in self.qs])
        nums = config.num_fit, config.num_test, config.num_samples
        ends = np.cumsum((0, *nums))
        x_T = subject.noise(self.denoiser, int(ends[-1]), config.seed)
        self.fit, self.test, self.fresh = (
            self.reference(x_T[a:b]) for a, b in itertools.pairwise(ends)
        )
        self.dynamic = strategies.dynamic(
            self.qs, self.costs, self.fit, config.tolerance, num_rungs=config.num_rungs,
            num_forecast=config.num_forecast,
        )  # fmt: skip

    def reference(self, x_T, cond=None) -> strategies.Reference:
        """Return noise with its samples in full precision."""
        return strategies.reference(self.qs[0], self.steps, x_T, cond=cond,
                                    batch_size=self.config.batch_size)  # fmt: skip

    def mean_cost(self, choice) -> float:
        """Return the mean cost of a call of a choice by step [N], or by step and sample."""
        return float(self.costs[np.asarray(choice)].mean())

    def kept(self, errors) -> dict:
        """Return what is said of scores: how many are within the tolerance, and the limit."""
        within = int(np.sum(errors <= self.config.tolerance))
        return {"within": within, "num": len(errors), "low": lower_limit(within, len(errors)),
                "rmse": float(np.sqrt(np.mean(errors**2)))}  # fmt: skip

    def last_kept(self, schedules, safest: int) -> int:
        """Return the first of these, dearest last, that the test from `safest` on does not refuse.

        Tested one by one, each a little cheaper; the dearest of all if the first one fails.
        """
        p_values: dict[str, float] = {}
        for place in range(safest, -1, -1):
            errors = strategies.score_choices(self.dynamic.stack, schedules[place], self.test)
            p_values[str(place)] = float(
                guarantees.share_p_value(errors, self.config.tolerance, self.config.share)
            )
            if p_values[str(place)] > DELTA:
                break
        passed = guarantees.fixed_sequence(p_values, DELTA).passed
        return int(passed[-1]) if passed else len(schedules) - 1

    @functools.cached_property
    def chosen(self) -> tuple[int, int]:
        """The recipe and the rung that are chosen beforehand."""
        num, ladder = len(self.costs), self.dynamic.schedules
        recipes = [np.full(self.config.num_steps, k) for k in range(num)]
        fitted = int(np.argmin(np.abs(self.dynamic.forecasts - self.dynamic.controller.tolerance)))
        return (self.last_kept(recipes, num - 1),
                self.last_kept(ladder, min(fitted + SAFER, len(ladder) - 1)))  # fmt: skip

    def beforehand(self):
        """Return arrays and the row of recipes, schedules and the oracle."""
        recipe, rung = self.chosen
        ladder, stack = self.dynamic.schedules, self.dynamic.stack
        some = strategies.first_of(self.fresh, self.config.num_oracle)
        errors = np.stack([strategies.score_choices(stack, row, some) for row in ladder])
        plain = np.full(self.config.num_steps, recipe)
        of_recipe, of_schedule = (
            strategies.score_choices(stack, row, self.fresh) for row in (plain, ladder[rung])
        )
        prices = np.array([self.mean_cost(row) for row in ladder])
        oracle = cheapest_within(errors, self.config.tolerance)
        row = {
            "family": self.family, "part": "beforehand", "costs": self.costs.tolist(),
            "words": self.words, "ladder": ["".join(map(str, row)) for row in ladder.tolist()],
            "prices": prices.tolist(), "forecasts": self.dynamic.forecasts.tolist(),
            "recipe": {"cost": float(self.costs[recipe]), "name": self.words[recipe],
                       **self.kept(of_recipe)},
            "schedule": {"cost": float(prices[rung]), "rung": rung, **self.kept(of_schedule)},
            "oracle": {"cost": float(prices[oracle].mean()),
                       **self.kept(np.take_along_axis(errors, oracle[None], 0)[0])},
            "spread": float(np.log2(of_schedule).std()),
        }  # fmt: skip
        return {"errors": errors, "recipe_errors": of_recipe, "schedule_errors": of_schedule,
                "oracle_costs": prices[oracle]}, row  # fmt: skip

    @functools.cached_property
    def budgeted(self):
        """The controller with the budget that was chosen, and its tests."""
        start = float(self.dynamic.controller.tolerance)
        return strategies.within_budget(
            self.dynamic, [start * ratio for ratio in RATIOS], self.test, self.config.tolerance,
            self.config.share, DELTA,
        )  # fmt: skip

    def as_it_runs(self):
        """Return arrays and the row of the controller, in distribution and out of it."""
        made, tests = self.budgeted
        found = strategies.score_dynamic(made, self.fresh)
        prices = self.costs[found.choices].mean(0)
        tail = np.quantile(prices, (0.5, 0.99))
        row = {"family": self.family, "part": "dynamic", "cost": float(prices.mean()),
               "median": float(tail[0]), "p99": float(tail[1]), "most": float(prices.max()),
               "tolerance": float(made.controller.tolerance), "passed": len(tests.passed),
               **self.kept(found.errors), "explained": explained(made, found),
               "shifts": self.shifted(made)}  # fmt: skip
        return {"errors": found.errors, "costs": prices, "choices": found.choices}, row

    def shifted(self, made) -> list[dict]:
        """Return what the controller and the schedule keep out of distribution."""
        rows = []
        schedule = self.dynamic.schedules[self.chosen[1]]
        some = self.fresh.x_T[: self.config.num_oracle]
        cases: dict = {name: (some * factor, None) for name, factor in SHIFTS.items()}
        num = getattr(self.denoiser.config, "num_classes", 0) or 0
        if num and self.denoiser.cond is None:
            cases[LABELS] = some, jnp.arange(len(some), dtype=jnp.int32) % num
        for name, (x_T, cond) in cases.items():
            noise = self.reference(x_T, cond)
            found = strategies.score_dynamic(made, noise)
            fixed = strategies.score_choices(made.stack, schedule, noise)
            rows.append({"name": name, "cost": self.mean_cost(found.choices),
                         **self.kept(found.errors), "schedule": self.kept(fixed)})  # fmt: skip
        return rows

    def time(self):
        """Return seconds of a run that chooses, and of one that is given its choices."""
        made, _ = self.budgeted
        x_T = self.fresh.x_T[: min(16, len(self.fresh.x_T))]
        choosing = jax.jit(lambda d, x: strategies.run_dynamic(d, x, self.steps))
        given = jax.jit(lambda s, c, x: strategies.run_choices(s, c, x, self.steps).x_0)
        choices = choosing(made, x_T).choices
        turns = {"given": functools.partial(timing.finish, given, made.stack, choices, x_T),
                 "choosing": functools.partial(timing.finish, choosing, made, x_T)}  # fmt: skip
        wall, cpu, _ = timing.compare(turns, self.config.num_rounds, seed=self.config.seed)
        ratios = cpu[:, 1] / cpu[:, 0]
        row = {"family": self.family, "part": "time", "seconds": float(np.median(wall[:, 1])),
               "overhead": [float(np.quantile(ratios, q) - 1) for q in (0.5, 0.25, 0.75)],
               "fastest": float(cpu[:, 1].min() / cpu[:, 0].min() - 1)}  # fmt: skip
        return {"seconds": wall, "cpu_seconds": cpu}, row


def bit_operations(sites, q: precision.Quantized) -> float:
    """Return the bit-operations of a call of a sample at the sites that are quantized."""
    assert q.widths is not None
    own = [site for site in sites if site.name in q.site_inputs]
    counts = costs.count(own)
    return float(np.sum(costs.bops(counts, costs.widths(counts, precision.Recipe(q.widths)))))


def cheapest_within(errors, tolerance: float) -> np.ndarray:
    """Return the first rung [num] whose error [G, num] is within the tolerance, else the last."""
    holds = np.asarray(errors) <= tolerance
    return np.where(holds.any(0), holds.argmax(0), len(holds) - 1)


def lower_limit(within: int, num: int) -> float:
    """Return the one-sided lower limit of a share at level 0.95 (Clopper & Pearson 1934)."""
    test = stats.binomtest(within, num, alternative="greater")
    return float(test.proportion_ci(1 - DELTA, method="exact").low)


def explained(made: strategies.Dynamic, found: strategies.Scored) -> list[float]:
    """Return the share of the variance of log errors that each call's forecast still explains [N].

    Of the errors that are left: where a forecast is worth R^2 and the controller follows it, this
    is -R^2 / (1 - R^2), as those who were foretold to err more have got more bits.
    """
    told = np.asarray(found.features) - np.asarray(made.controller.centers)[:, None]
    logs = np.log(found.errors)
    forecasts = np.einsum("nsf,nf->ns", told, np.asarray(made.controller.slopes))
    residual = logs - logs.mean() - (forecasts - forecasts.mean(1, keepdims=True))
    return (1 - residual.var(1) / logs.var()).tolist()


EXPERIMENT = command.experiment(
    Config, run, plots=plots,
    quick={"families": ("activations",), "bits": (4, 6, 8), "num_steps": 4, "num_fit": 16,
           "num_test": 64, "num_samples": 32, "num_oracle": 16, "num_forecast": 2, "num_rungs": 5,
           "num_rounds": 2},
)  # fmt: skip
