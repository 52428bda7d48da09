"""A quantized denoiser in the making, and the cures that are applied to it one after the other.

    cure:  Draft -> Draft            what is decided by now, beside calibration and recipe
    improve(calibration, recipe, [smoothing(), gptq(), bias_correction()], steps, key) -> Draft
    draft.quantized() -> Quantized   for samplers, ledgers, predictions, as from `quantize`

A cure of one stage builds on what those before it decided: a basis comes before the clips and the
rounding of the weights in it, a correction after all of them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax._checks import check_count, check_key, check_type, require
from qdiffjax.denoiser import Denoiser, Draw
from qdiffjax.diffusion import Steps
from qdiffjax.precision import Quantized, Recipe, SiteQuant, Switch
from qdiffjax.precision.around import Around
from qdiffjax.precision.calibration import Calibration
from qdiffjax.precision.noise_marks import marks_of
from qdiffjax.precision.refusals import check_noise
from qdiffjax.quant import RoundingSequence
from qdiffjax.sites import Site
from qdiffjax.strategies.grids import Grid, noted, whole_grid
from qdiffjax.strategies.states import States, chosen_calls, full_inputs

BASIS, SPLIT, CLIP, ROUND, LEAVE, TRAIN, SITES, SAMPLER = range(8)  # stages, in their order
STAGES = ("basis", "low-rank part", "clips", "rounding of weights", "sites left out", "training",
          "correction of sites", "correction of the prediction")  # fmt: skip


class Bill(NamedTuple):
    """What the cures of a draft have cost.

    evaluations: of the network, times samples, an evaluation with its gradient counted as three;
    optimizer_steps: of gradient descent; seconds: by the clock.
    """

    evaluations: int = 0
    optimizer_steps: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cure:
    """One decision about a draft.

    Attributes:
      name: in few words.
      stage: when it comes, see `STAGES`.
      apply: (draft) -> draft.
      check: (draft) -> anything, which refuses a draft that it does not fit, whatever cures do
        before it: `improve` asks all before any works. None for nothing.
    """

    name: str
    stage: int
    apply: Callable[["Draft"], "Draft"]
    check: Callable[["Draft"], Any] | None = None

    def __call__(self, draft: "Draft") -> "Draft":
        """Return the draft with this decision, its name and its cost noted."""
        check_type("draft", draft, Draft, remedy="draft(calibration, recipe, steps, key)")
        require(all(cure.stage <= self.stage for cure in draft.cures), self.name,
                got=f"it after {draft.cures[-1].name!r}" if draft.cures else "",
                expected=f"stages in their order: {', '.join(STAGES)}",
                remedy="compose(cures) sorts them")  # fmt: skip
        if self.check is not None:
            self.check(draft)
        start = time.monotonic()
        done = self.apply(draft)
        seconds = done.bill.seconds + time.monotonic() - start
        return dataclasses.replace(
            done, cures=(*draft.cures, self), bill=done.bill._replace(seconds=seconds)
        )


@dataclasses.dataclass(frozen=True)
class Draft:
    """A calibration, a recipe, and what cures have decided so far.

    Attributes:
      calibration: of the denoiser, with the conditions that its user gave it.
      recipe: as for `quantize`.
      steps: the sampler.
      states: where cures look.
      x_T: initial noise of the states' samples [batch, *shape].
      cond: their conditions, leaves [batch, ...]; None if there are none.
      key: of what is random, the noise of a stochastic sampler too.
      options: of `quantize`.
      around: what is done around products, by site.
      rounded: weights that are rounded already, by site, in their basis.
      learned: (scale, zero point, format) that a rounded weight is on in place of the recipe's.
      grids: activation grids in place of the recipe's, by site, one for each operand.
      plain: sites that stay in full precision whatever the recipe says.
      cures: those applied, in order.
      losses: curves of trainings, each point a mean over some steps, by name of the cure.
      bill: what they cost.
    """

    calibration: Calibration
    recipe: Recipe | str
    steps: Steps
    states: States
    x_T: Any
    cond: Any
    key: Any
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    around: dict[str, Around] = dataclasses.field(default_factory=dict)
    rounded: dict[str, Any] = dataclasses.field(default_factory=dict)
    learned: dict[str, tuple] = dataclasses.field(default_factory=dict)
    grids: dict[str, tuple] = dataclasses.field(default_factory=dict)
    plain: frozenset[str] = frozenset()
    cures: tuple[Cure, ...] = ()
    losses: dict[str, Any] = dataclasses.field(default_factory=dict)
    bill: Bill = dataclasses.field(default_factory=Bill)

    @property
    def sites(self) -> dict[str, Site]:
        """The network's sites by name."""
        return {site.name: site for site in self.calibration.sites}

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser with the conditions of the states' samples."""
        return dataclasses.replace(self.calibration.denoiser, cond=self.cond)

    def site_inputs(self, **options) -> dict[str, SiteQuant]:
        """Return what the recipe alone says, for weights in their basis and without a branch."""
        return self._quantize(0, **options).site_inputs

    def rounds_weight(self) -> tuple[str, ...]:
        """Return the sites whose weight the recipe rounds at some step, in evaluation's order."""
        inputs = self.site_inputs()
        return tuple(name for name in self.sites
                     if name in inputs and inputs[name].weight is not None)  # fmt: skip

    def rounds_product(self) -> tuple[str, ...]:
        """Return the sites with a weight at which the recipe rounds it or what it multiplies."""
        inputs = self.site_inputs()
        is_rounded = {name: each.weight is not None or any(a is not None for a in each.activations)
                      for name, each in inputs.items()}  # fmt: skip
        return tuple(name for name, site in self.sites.items()
                     if is_rounded.get(name) and name in self.calibration.weights
                     and not site.is_constant)  # fmt: skip

    def weight_grids(self, chosen: Iterable[str] | None = None) -> dict[str, Grid]:
        """Return the weights that the recipe rounds, with their grids, none of them rounded yet.

        Args:
          chosen: names of sites; None takes all.

        Raises:
          ValueError: groups that are no part of the operand's shape; weights by step, or rounded
            anew at every call.
        """
        names, plain = self.rounds_weight(), self.site_inputs()
        wanted = set(names if chosen is None else chosen)
        names = tuple(name for name in names if name in wanted)
        for name in names:
            require(not isinstance(plain[name].weight, Switch), name, got="a weight by step",
                    expected="one for all steps, which cures can round",
                    remedy="let activations alone change by step")  # fmt: skip
            require(not isinstance(plain[name].weight, RoundingSequence), name,
                    got="a weight rounded anew at every call", expected="one rounding",
                    remedy="leave the word 'shaped' out")  # fmt: skip
        inputs = self.site_inputs(round_fn=noted)
        found = {name: whole_grid(self.sites[name], inputs[name].weight) for name in names}
        for name, grid in found.items():
            site = self.sites[name]
            assert site.weight is not None
            require(isinstance(grid, Grid) and grid.w.shape == site.shapes[site.weight], name,
                    got="groups over more than one axis", expected="a scale for each channel or "
                    "for the tensor, or groups along the one axis that is summed",
                    remedy="leave the groups out of the recipe")  # fmt: skip
        # A grid notes what was to be rounded to nearest, which sums that are kept have moved.
        weights = self._weights(0)
        return {name: Grid(weights[name], *self.learned.get(name, grid[1:]))
                for name, grid in found.items()}  # fmt: skip

    def with_around(self, name: str, **parts) -> "Draft":
        """Return it with parts of an `Around` at a site replaced."""
        around = dataclasses.replace(self.around.get(name, Around()), **parts)
        return dataclasses.replace(self, around={**self.around, name: around})

    def billed(self, evaluations: int = 0, optimizer_steps: int = 0) -> "Draft":
        """Return it with a cost added to its bill."""
        bill = self.bill._replace(
            evaluations=self.bill.evaluations + evaluations,
            optimizer_steps=self.bill.optimizer_steps + optimizer_steps,
        )
        return dataclasses.replace(self, bill=bill)

    def at_samples(self) -> Quantized:
        """Return the denoiser under the recipe and the cures, for the states' samples."""
        return self.quantized().given(self.cond)

    def quantized(self) -> Quantized:
        """Return the denoiser under the recipe and the cures, for samples of any conditions."""
        num_calls = {n for around in self.around.values() for b in around.bases
                     if (n := b.num_calls) is not None}  # fmt: skip
        base = self._quantize(0)
        inputs = dict(base.site_inputs)
        if num_calls:
            inputs |= self._weights_by_call(max(num_calls))
        for name, weight in self.rounded.items():
            if name in inputs:
                inputs[name] = inputs[name]._replace(weight=weight)
        for name, grids in self.grids.items():
            if name in inputs:
                inputs[name] = inputs[name]._replace(activations=grids)
        for name, around in self.around.items():
            own = inputs.get(name, SiteQuant())
            if around.bases or around.branch is not None:
                own = own._replace(weight=_filled(own.weight, self.weight(name, 0)))
            inputs[name] = own._replace(around=around)
        inputs = {name: each for name, each in inputs.items() if name not in self.plain}
        names = ", ".join(cure.name for cure in self.cures)
        settings = dataclasses.replace(
            base.settings, weights=f"{base.settings.weights}; cures: {names or 'none'}"
        )
        return dataclasses.replace(base, site_inputs=inputs, settings=settings)

    def _quantize(self, call: int, **options) -> Quantized:
        calibration = dataclasses.replace(self.calibration, weights=self._weights(call))
        return precision.quantize(calibration, self.recipe, **{**self.options, **options})

    def _weights(self, call: int) -> dict[str, Any]:
        """Return all weights, those with something around them as `weight` does."""
        changed = {name: self.weight(name, call) for name in self.around
                   if name in self.calibration.weights}  # fmt: skip
        return {**self.calibration.weights, **changed}

    def weight(self, name: str, call: int = 0):
        """Return a weight operand in the basis that it has so far, without its branch."""
        site = self.sites[name]
        axis = None if site.weight is None else precision.group_axis(site, site.weight)
        around = self.around.get(name, Around())
        return around.weight(self.calibration.weights[name], axis, call)

    def _weights_by_call(self, num: int) -> dict[str, SiteQuant]:
        """Return the inputs of sites whose basis changes from call to call, their weights too."""
        tables = [b.scale for around in self.around.values() for b in around.bases
                  if b.num_calls is not None]  # fmt: skip
        rows = np.concatenate([np.asarray(table) for table in tables], -1)
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        numbers = jnp.asarray(which.reshape(-1), jnp.int32)
        versions = [self._quantize(int(call)).site_inputs for call in first]
        changing = [name for name, around in self.around.items()
                    if any(b.num_calls is not None for b in around.bases)]  # fmt: skip
        for name in changing:
            is_switch = name in versions[0] and isinstance(versions[0][name].weight, Switch)
            require(not is_switch, name, got="a weight by step in a basis by step",
                    expected="one of the two", remedy="smooth in one range")  # fmt: skip
        return {
            name: versions[0][name]._replace(
                weight=Switch(tuple(_filled(v[name].weight, self.weight(name, int(call)))
                                    for call, v in zip(first, versions, strict=True)), numbers)
            )
            for name in changing if name in versions[0]
        }  # fmt: skip


def _filled(weight, full):
    """Return a weight with that in full precision wherever it is left alone."""
    if isinstance(weight, Switch):
        return Switch(tuple(_filled(a, full) for a in weight.alternatives), weight.which)
    return full if weight is None else weight


def compose(cures: Iterable[Cure]) -> Cure:
    """Return several cures as one, in the order of their stages.

    Raises:
      TypeError: something that is no cure.
      ValueError: two that decide the same: how weights are rounded, or how the prediction is
        corrected.
    """
    require(not isinstance(cures, Cure), "cures", got="one", expected="a list of them",
            remedy="[cure]", error=TypeError)  # fmt: skip
    cures = tuple(cures)
    for cure in cures:
        check_type("cures", cure, Cure, remedy="such as smoothing() or gptq()")
    for stage in (ROUND, SAMPLER):
        same = [cure.name for cure in cures if cure.stage == stage]
        require(len(same) <= 1, "cures", got=f"{' and '.join(same)}",
                expected=f"one for the {STAGES[stage]}", remedy="choose one")  # fmt: skip
    ordered = sorted(cures, key=lambda cure: cure.stage)

    def apply(draft: Draft) -> Draft:
        for cure in ordered:
            draft = cure(draft)
        return dataclasses.replace(draft, cures=draft.cures[: len(draft.cures) - len(ordered)])

    def check(draft: Draft) -> None:
        for cure in ordered:
            if cure.check is not None:
                cure.check(draft)

    name = " + ".join(cure.name for cure in ordered) or "none"
    return Cure(name, ordered[0].stage if ordered else BASIS, apply, check)


def draft(
    calibration: Calibration,
    recipe: Recipe | str,
    steps: Steps,
    key,
    *,
    num_samples: int = 16,
    num_calls: int | None = None,
    chances=None,
    x_T=None,
    **options,
) -> Draft:
    """Return a draft without cures: one full-precision run whose calls are what cures look at.

    Args:
      calibration: see `calibrate`.
      recipe: as for `quantize`, which is called as a check.
      steps: the sampler.
      key: of the samples' noise and conditions, and of what else is random, roundings too.
      num_samples: number of samples.
      num_calls: how many of the sampler's calls are looked at, evenly spread with the first and the
        last among them; None is 16, or all of fewer.
      chances: of each call to be drawn instead [N], not all zero: a normal law of the time is
        that of PTQ4DM (Shang et al. 2023); see `normal_chances`.
      x_T: initial noise of the samples [num_samples, *shape]; None draws it.
      options: of `quantize`.

    Raises:
      ValueError: as `quantize`; a number of calls beyond the sampler's.
    """
    check_type("calibration", calibration, Calibration, remedy="calibrate(denoiser, steps, key)")
    check_type("steps", steps, Steps, remedy="such as ddim(schedule, 50)")
    check_key("key", key)
    check_count("num_samples", num_samples, least=2)
    most = steps.t.shape[0]
    num_calls = min(16, most) if num_calls is None else num_calls
    check_count("num_calls", num_calls, most=most)
    options = {"key": jax.random.fold_in(key, 3)} | options
    precision.quantize(calibration, recipe, **options)
    if x_T is None:
        draw = calibration.denoiser.draw(key, num_samples, steps.t[0])
    else:
        check_noise(calibration.denoiser, x_T)
        draw = Draw(jnp.asarray(x_T), calibration.denoiser.draw_cond(key, len(x_T)))
    denoiser = dataclasses.replace(calibration.denoiser, cond=draw.cond)
    calls = chosen_calls(most, num_calls, chances, jax.random.fold_in(key, 1))
    seen = full_inputs(denoiser, steps, draw.x_T, key)
    states = States(seen[calls], steps.times(draw.x_T)[calls], jnp.asarray(calls, jnp.int32))
    noise = calibration.noise | marks_of(key, draw.x_T)
    calibration = dataclasses.replace(calibration, noise=noise)
    made = Draft(calibration, recipe, steps, states, draw.x_T, draw.cond, key, options)
    return made.billed(evaluations=most * draw.x_T.shape[0])


def improve(
    calibration: Calibration,
    recipe: Recipe | str,
    cures: Sequence[Cure],
    steps: Steps,
    key,
    **options,
) -> Draft:
    """Return the draft of a recipe with cures applied in the order of their stages.

    Args:
      calibration, recipe, steps, key, options: as for `draft`.
      cures: see `strategies`.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> from qdiffjax import strategies
      >>> params = {"in": jnp.array([[9.0, 0.3], [0.2, 0.1]]), "out": jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> cures = [strategies.gptq(), strategies.smoothing()]
      >>> made = strategies.improve(calibration, "W4A8", cures, steps, jax.random.key(1))
      >>> [cure.name for cure in made.cures]
      ['smoothing .5', 'GPTQ']
      >>> qd.sample(made.quantized(), steps, jax.random.key(2), 3).shape
      (3, 2)
    """
    whole = compose(cures)  # refuses what does not fit together, before any work
    made = draft(calibration, recipe, steps, key, **options)
    if whole.check is not None:
        whole.check(made)
    for cure in sorted(cures, key=lambda cure: cure.stage):
        made = cure(made)
    return made
