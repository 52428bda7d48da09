"""Faults of quantized networks, told from rounding: how many are found, and how often in vain.

    python -m experiments.faults

Recipes are drawn as in `random_recipes`, with static scales of activations. Each is quantized
twice, with ranges of other noises: once as what is claimed, whose error is forecast from the
full-precision run, and once as what was built (`verdicts.verdict`). On the network `fixed_on`
honest recipes alone say how far measured and forecast errors of samples, steps and sites may be
apart. With these limits verdicts are given on the other network: of honest recipes, and of the same
with a fault, at all steps, from some step on, or at one: a weight's scale is wrong, a zero point is
that of another site, a site has 2 bits, an edge of a range is clipped, the network is given the
time of the step before or after.

The effect of a fault is measured over forecast error, geometric means of samples as in a verdict,
on noises that the verdict does not see.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from experiments.faults import draws, plots
from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.random_recipes import draws as recipes
from qdiffjax import compiling, diffusion, precision, results
from qdiffjax.analysis.errors import forecast_evidence, measured_evidence
from qdiffjax.sites import match
from qdiffjax.verdicts import Verdict, joined


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint("fashion_dit")
    fixed_on: str = subject.checkpoint("fashion_unet")
    mean_bits: tuple[int, ...] = option((4, 5, 6, 8), "Average widths of weights, the strata.",
                                        least=3, most=8)  # fmt: skip
    num_fixed: int = option(60, "Honest recipes that fix the limits.", least=2)
    num_recipes: int = option(200, "Honest recipes that are judged.", least=1)
    num_faults: int = option(2, "Faults of each of them.", least=1, most=len(draws.KINDS))
    num_calibrations: int = option(8, "Noises of ranges, of which each recipe has two.", least=2)
    num_steps: int = option(10, "Steps of DDIM.", least=2)
    num_samples: int = option(16, "Noises of a verdict, and of an effect.", least=2)
    sites: tuple[str, ...] = option(
        ("*", "!last", "!input", "!output"), "Globs of sites to quantize, see `sites.match`."
    )
    seed: int = command.seed()


def run(config: Config, **options):
    """Return arrays and rows of every recipe; touches no file.

    Arrays of each: RMSE of each sample, forecast and measured [num_samples], and faulty, of each
    fault [num_faults, num_samples]. Options as `command.parts`.
    """
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    seeds = {plots.TESTED: config.seed, plots.FIXED: config.seed + 500_000}
    heres = {  # both networks are looked at before any work
        part: subject.prepare(name, steps_of, config.sites, seeds[part])
        for part, name in ((plots.TESTED, config.checkpoint), (plots.FIXED, config.fixed_on))
    }

    @functools.lru_cache(maxsize=1)
    def world(part: str):
        return World(config, part, heres[part], seeds[part])

    def measure(part: str):
        name, place = part.split()
        return world(name).measure(int(place))

    parts = [*(f"{plots.FIXED} {i}" for i in range(config.num_fixed)),
             *(f"{plots.TESTED} {i}" for i in range(config.num_recipes))]  # fmt: skip
    mark = results.fingerprint(dataclasses.asdict(config), *(h.mark() for h in heres.values()))
    done = command.parts(parts, measure, mark, **options)
    return command.by_part(done), [row for _, row in done.values()]


class World:
    """A network with all its recipes, claimed, built and at fault, in one structure."""

    def __init__(self, config: Config, part: str, here: subject.Subject, seed: int):
        self.part, self.config, self.seed = part, config, seed
        is_fixed = part == plots.FIXED
        num = config.num_fixed if is_fixed else config.num_recipes
        self.denoiser = here.denoiser
        self.steps = diffusion.ddim(here.denoiser.schedule, config.num_steps)
        calibrations = [here.calibration, *(
            subject.observed(here, self.steps, self.seed + 1 + i).calibration
            for i in range(config.num_calibrations - 1)
        )]  # fmt: skip
        names = match(here.sites, config.sites)
        chosen = [s for s in here.sites if s.name in names and s.is_real and not s.is_constant]
        rng = np.random.default_rng(self.seed)
        self.strata = [config.mean_bits[i % len(config.mean_bits)] for i in range(num)]
        drawn = [recipes.draw(rng, chosen, bits, config.num_steps, scales="static")
                 for bits in self.strata]  # fmt: skip
        pairs = [rng.choice(len(calibrations), 2, replace=False) for _ in drawn]
        qs = [[precision.quantize(calibrations[pair[k]], recipe)
               for recipe, pair in zip(drawn, pairs, strict=True)] for k in range(2)]  # fmt: skip
        qs[1] = [with_weights(*both) for both in zip(*qs, strict=True)]
        self.faults: list[tuple[draws.Fault, ...]] = [()] * num
        if not is_fixed:
            self.faults = [self._faults(rng, i, q) for i, q in enumerate(qs[1])]
        qs += [[draws.applied(own[k], q, calibrations[pair[1]], config.num_steps)
                for own, q, pair in zip(self.faults, qs[1], pairs, strict=True)]
               for k in range(len(self.faults[0]))]  # fmt: skip
        alike = precision.alike([q for group in qs for q in group], self.steps)
        self.qs = [alike[k * num : (k + 1) * num] for k in range(len(qs))]
        self.full = compiling.compiled(
            lambda q, x_T: diffusion.sample(precision.full_call(q), x_T, self.steps).states
        )
        self.explain = compiling.compiled(forecast_evidence)
        self.look = compiling.compiled(measured_evidence)

    def _faults(self, rng, place: int, q) -> tuple[draws.Fault, ...]:
        """Return the faults of one recipe, kinds in turn."""
        first = place // len(self.config.mean_bits)
        kinds = [draws.KINDS[(first + 2 * k) % len(draws.KINDS)]
                 for k in range(self.config.num_faults)]  # fmt: skip
        return tuple(draws.draw(rng, q, kind, self.config.num_steps) for kind in kinds)

    def forecast(self, q, seed: int):
        """Return the full-precision states on noise of its own, and what rounding explains."""
        x_T = subject.noise(self.denoiser, self.config.num_samples, seed)
        xs = self.full(q, x_T)
        return xs, self.explain(q, xs, self.steps)

    def verdict(self, q, explained, suspect, own_steps) -> Verdict:
        """Return the verdict of a suspect beside the forecast of q."""
        xs, expected = explained
        found = self.look(q, suspect, xs, self.steps, own_steps)
        expected, found = (joined([each], [len(each.errors)]) for each in (expected, found))
        return Verdict(expected, found)

    def measure(self, place: int):
        """Return arrays and the row of one recipe."""
        q, honest = self.qs[0][place], self.qs[1][place]
        seed = self.seed + 2_000_000 + 2 * place
        explained = self.forecast(q, seed)
        found = self.verdict(q, explained, honest, self.steps)
        row = {"part": self.part, "recipe": place, "stratum": self.strata[place],
               "honest": told(found)}  # fmt: skip
        arrays = {"forecast": found.expected.errors, "measured": found.suspect.errors}
        if self.faults[place]:
            errors, row["faults"] = self.faulty(place, q, explained, self.forecast(q, seed + 1))
            arrays["faulty"] = jnp.stack(errors)
        return {name: np.asarray(a, np.float32) for name, a in arrays.items()}, row

    def faulty(self, place: int, q, explained, again) -> tuple[list, list[dict]]:
        """Return the errors and rows of a recipe's faults; `again` is of the noise of effects."""
        errors, rows = [], []
        for fault, group in zip(self.faults[place], self.qs[2:], strict=True):
            own = draws.shifted(fault, self.steps)
            found = self.verdict(q, explained, group[place], own)
            fresh = self.verdict(q, again, group[place], own)
            rows.append(fault._asdict() | told(found) | {"effect": fresh.ratio})
            errors.append(jnp.asarray(found.suspect.errors))
        return errors, rows


def with_weights(claimed, built):
    """Return what is built with the weights that are claimed, which are the same: less memory."""
    shared = {name: inputs._replace(weight=claimed.site_inputs[name].weight)
              for name, inputs in built.site_inputs.items()}  # fmt: skip
    return dataclasses.replace(built, site_inputs=shared)


def told(verdict: Verdict) -> dict:
    """Return what a verdict is made of, whatever its limits."""
    name, step, site_ratio = verdict.worst
    return {"total_ratio": verdict.ratio, "step_ratio": float(verdict.steps.max()),
            "site_ratio": site_ratio,
            "worst_step": int(verdict.steps.argmax()), "worst_site": name,
            "worst_site_step": step, "measured": verdict.measured,
            "forecast": verdict.forecast[0]}  # fmt: skip


EXPERIMENT = command.experiment(
    Config, run, plots=plots, quick={"fixed_on": "fashion_dit", "num_fixed": 8, "num_recipes": 20,
                                     "num_calibrations": 2, "num_steps": 4, "num_samples": 4}
)  # fmt: skip
