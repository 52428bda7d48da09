"""What is measured once of a denoiser, whatever the recipe; and its quantized self."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import diffusion
from qdiffjax._checks import check_count, check_key, check_names, check_number, check_type, require
from qdiffjax._conditions import as_arguments
from qdiffjax._typing import EpsFn
from qdiffjax.denoiser import Denoiser, Draw
from qdiffjax.precision.diagnosis import diagnose
from qdiffjax.precision.formats import (
    BY_STEP,
    CHANNEL,
    NEAREST,
    SHAPED,
    STATIC,
    STOCHASTIC,
    TENSOR,
    TOKEN,
    OperandFormat,
)
from qdiffjax.precision.printing import calibration_table
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.recipe import Recipe
from qdiffjax.precision.refusals import arguments, check_noise, check_steps
from qdiffjax.precision.rules import Series, SiteQuant, Switch
from qdiffjax.precision.settings import Assignment, assign, static_grid
from qdiffjax.precision.weights import round_weights, weight_operands
from qdiffjax.quant import ActivationGrid, BlockFormat, activation_grid
from qdiffjax.sites import Sites, rules, transform

NUM_SAMPLES = 32  # of calibration
Ranges = dict[str, tuple[Any, ...]]
GridFn = Callable[[Any, Any, int], ActivationGrid]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Calibration:
    """A denoiser with everything that is measured once; a pytree.

    Attributes:
      denoiser: in full precision.
      sites: where it multiplies; static.
      weights: the weight operand of every site that has one, by name.
      ranges: (low, high) of each activation operand by site, for all steps [num_steps] or for one.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> wide = calibration.widened(1.2)
      >>> low, high = (c.ranges["input"][0][1].max() for c in (calibration, wide))
      >>> round(float(high / low), 3)
      1.2
    """

    denoiser: Denoiser
    sites: Sites = dataclasses.field(metadata={"static": True})
    weights: dict[str, Any]
    ranges: Ranges

    @property
    def eps_fn(self) -> EpsFn:
        """The denoiser as (params, x [batch, *shape], t [], cond=None) -> eps."""
        return self.denoiser.eps_fn

    @property
    def params(self) -> Any:
        """The full-precision parameters."""
        return self.denoiser.params

    def __repr__(self):
        return str(calibration_table(self.sites, self.ranges))

    def _repr_html_(self) -> str:
        return calibration_table(self.sites, self.ranges)._repr_html_()

    def to_dataframe(self):
        """Return a row for each site as a pandas data frame, with the range of its activations.

        Raises:
          ImportError: pandas is not installed.
        """
        return calibration_table(self.sites, self.ranges).to_dataframe()

    def widened(self, factor: float, names: Sequence[str] = ("input", "output")) -> "Calibration":
        """Return it with the ranges of the activations at the sites `names` multiplied by `factor`.

        Every operand whose observed range equals that of a named site is the same activation, and
        is widened with it: the first convolution reads what `input` reads. Worth it for the
        network's input and output: at the noise end eps is nearly x_t, so a pixel of noise beyond
        the range that calibration saw is clipped for good, and what was missed grows by
        alpha_0 / alpha_T on its way to the sample. A few calibration samples leave such a pixel to
        one sample in about thirty.

        Raises:
          ValueError: a name without ranges.
        """
        check_number("factor", factor, above=0)
        check_names("names", names, self.ranges)
        ends = [self.ranges[name][0] for name in names]

        def wider(operand):
            is_end = any(all(map(jnp.array_equal, operand, end)) for end in ends)
            return tuple(a * factor for a in operand) if is_end else operand

        ranges = {name: tuple(map(wider, operands)) for name, operands in self.ranges.items()}
        return dataclasses.replace(self, ranges=ranges)


def calibrate(
    denoiser: Denoiser,
    steps: diffusion.Steps,
    key=None,
    *,
    num_samples: int = NUM_SAMPLES,
    x_T=None,
    progress: bool = False,
) -> Calibration:
    """Measure what every recipe needs, on one full-precision sampling run.

    What is odd about the network is told first, see `diagnose`.

    Args:
      denoiser: any network, see `Denoiser`.
      steps: the sampler.
      key: of the calibration samples' noise and conditions, and of a stochastic sampler's noise;
        None only if nothing is to be drawn.
      num_samples: number of calibration samples.
      x_T: initial noise of the calibration samples [num_samples, *shape]; None draws it.
      progress: show a progress bar: the look at the network, its weights, the sampling run.

    Raises:
      ValueError: a network that cannot be sampled.

    Warns:
      DiagnosisWarning: something that an analysis leaves out, or that would falsify it.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> sorted(calibration.ranges)
      ['in', 'input', 'out', 'output']
    """
    check_type("denoiser", denoiser, Denoiser, remedy="such as load('fashion_unet')")
    check_steps(denoiser, steps)
    check_count("num_samples", num_samples)
    if key is not None:
        check_key("key", key)
    key_start, key_noise = (None, None) if key is None else jax.random.split(key)
    if x_T is None:
        require(key is not None, "key, x_T", got="neither", expected="one of them",
                remedy="pass jax.random.key(seed)")  # fmt: skip
        draw = denoiser.draw(key_start, num_samples, steps.t[0])
    else:
        check_noise(denoiser, x_T)
        draw = Draw(jnp.asarray(x_T), denoiser.draw_cond(key_start, len(x_T)))
    from tqdm import tqdm

    first = jax.tree.map(lambda leaf: leaf[:1], draw)
    observe = jax.jit(lambda d, x, key, cond: observe_ranges(
        d.eps_fn, d.params, steps, x, key=key, cond=cond
    ))  # fmt: skip
    with tqdm(total=3, desc="calibrate", disable=not progress, unit="part") as bar:
        diagnosis = diagnose(denoiser, steps, draw=draw)
        diagnosis.warn()
        bar.update()
        weights = weight_operands(*arguments(denoiser, first, steps.times(first.x_T)[0]))
        bar.update()
        ranges = jax.block_until_ready(observe(denoiser, draw.x_T, key_noise, draw.cond))
        bar.update()
    return Calibration(denoiser, diagnosis.sites, weights, ranges)


def quantize(
    calibration: Calibration,
    recipe: Recipe | str,
    *,
    sites: Iterable[str] | None = None,
    activations: str | None = None,
    edge_margin: float | None = None,
    **rounding,
) -> Quantized:
    """Return the denoiser under a recipe, simulated: rounded numbers that multiply as floats.

    A recipe in words has defaults: all layers but the last, not the network's own input and output
    nor products of activations (attention's scores); a dynamic affine grid for each row of a
    product and each sample of a convolution; weights by output channel, rounded to nearest such
    that the sum of each channel stays. A `Recipe` is taken at its word: its sites, static grids
    over the widest ranges of all steps, weights rounded to nearest. Options hold for both; what was
    chosen is in `settings` of the result. Results that differ in widths share one compilation of
    whatever takes them.

    Rounding is in float32, but what is rounded multiplies in the network's own dtype: bfloat16 and
    float16 round numbers on the grid, weights too, once more, by up to 2^-9 and 2^-12 of each.
    `lower` multiplies the codes themselves and does not, so that there, unlike in float32, the two
    differ by more than the order of sums.

    Args:
      calibration: see `calibrate`.
      recipe: widths by site, which may be traced, or in words: "W8A8", "W4", "A6".
      sites: globs of the sites to quantize, see `sites.match`; None takes the defaults above.
      activations: "dynamic" or "static".
      edge_margin: factor on static ranges of what enters and leaves the network, see
        `Calibration.widened`; None is 1.2 for words and 1 for a `Recipe`.
      rounding: `round_fn`, `calibrate_fn`, `granularity`, `format_fn`, `adjust_fn` of the weights,
        see `round_weights`; `round_fn=shaped(key)` is a rounding for each call of the sampler.

    Raises:
      ValueError: a recipe in words, a glob or an option that does not fit; nothing to quantize; a
        site whose numbers are not real.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> x_0 = qd.sample(q, steps, jax.random.key(1), 3)
      >>> x_0.shape
      (3, 2)
    """
    chosen = assign(calibration, recipe, rounding, sites=sites, activations=activations,
                    edge_margin=edge_margin)  # fmt: skip
    c, recipe = chosen.calibration, chosen.recipe
    round_fn = functools.partial(round_weights, c.weights, c.sites, **chosen.rounding)
    inputs = inputs_of(chosen, round_fn, as_data(chosen.grid_fn))
    return Quantized(
        c.denoiser, inputs, widths=recipe.widths(), settings=chosen.settings
    )  # fmt: skip


def inputs_of(
    chosen: Assignment,
    weights_of: Callable[[Recipe], dict[str, Any]],
    grid_fn: Callable[[Any, Any, int], ActivationGrid | None],
) -> dict[str, SiteQuant]:
    """Return the inputs of every site under a recipe, those that change by phase as a `Switch`."""
    ranges = chosen.calibration.ranges
    tables = [
        site_inputs(table, weights_of(table), over_steps(ranges), grid_fn, by_step=ranges)
        for table in map(Recipe, chosen.recipe.tables)
    ]
    if len(tables) == 1:
        return tables[0]
    which = chosen.recipe.which(num_steps(ranges))
    base, *phases = tables
    plain = SiteQuant()
    return {
        name: switched([base.get(name, plain),
                        *(phase.get(name, base.get(name, plain)) for phase in phases)], which)
        for name in chosen.recipe.names
    }  # fmt: skip


def num_steps(ranges: Ranges) -> int:
    """Return how many calls the sampler had whose ranges these are.

    Raises:
      ValueError: ranges of all steps together.
    """
    ends = jax.tree.leaves(ranges)
    require(bool(ends) and jnp.ndim(ends[0]) == 1, "ranges", got="one for all steps",
            expected="one for each call of the sampler, for a recipe by step",
            remedy="calibrate(denoiser, steps, key)")  # fmt: skip
    return len(ends[0])


def range_of(x):
    """(min, max) of an activation, two scalars."""
    return jnp.min(x), jnp.max(x)


def observe_ranges(
    eps_fn: EpsFn, params, steps: diffusion.Steps, x_T, *, key=None, cond=None
) -> Ranges:
    """Return the range of every activation operand at every step of a full-precision run.

    Args:
      eps_fn: eps_fn(params, x [batch, *shape], t [], cond) -> eps, without cond if that is None.
      params: its parameters.
      steps: the sampler, leaves [N].
      x_T: initial noise [batch, *shape].
      key: noise of a stochastic sampler.
      cond: conditions of the samples, leaves [batch, ...].

    Returns:
      (low, high) of each activation operand by site, leaves [N].
    """
    g, rest = transform(eps_fn, rules.observe(range_of)), as_arguments(cond)
    return diffusion.sample(
        lambda x, t, _, state: (*g(params, x, t, *rest), state),
        x_T,
        steps,
        key=key,
        keep_trajectory=False,
    ).outputs


def over_steps(ranges: Ranges) -> Ranges:
    """One static range per operand: the widest over all steps."""
    return jax.tree.map(
        lambda r: (jnp.min(r[0]), jnp.max(r[1])), ranges, is_leaf=_is_range
    )  # fmt: skip


def _is_range(node) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and not isinstance(node[0], tuple)


def as_data(grid_fn: GridFn) -> GridFn:
    """Return the function whose grids have their bits as data, so that widths share a program."""
    return lambda low, high, bits: grid_fn(low, high, bits).with_bits_as_data()


simulated_grid = as_data(static_grid)


def site_inputs(
    recipe: Recipe,
    weights: dict[str, Any],
    ranges: Ranges,
    grid_fn: Callable[[Any, Any, int], ActivationGrid | None] = simulated_grid,
    *,
    by_step: Ranges | None = None,
) -> dict[str, SiteQuant]:
    """Return the inputs of every site under a recipe without phases.

    Args:
      recipe: widths or formats by site.
      weights: quantized weights by site, from `round_weights`.
      ranges: static ranges from `over_steps`; with a leading step axis (from `observe_ranges`)
        the result is for the sampler's `per_call`.
      grid_fn: (low, high, bits) -> how an activation of so many bits is rounded; an
        `OperandFormat` says so itself.
      by_step: ranges with a step axis, for formats whose scales are by step.
    """
    inputs = {}
    for name, (_, entry) in recipe.bits.items():
        grids: list[Any] = []
        if entry is not None:
            check_names("ranges", (name,), ranges)
            grids = [
                format_grid(entry, pair, every) if isinstance(entry, OperandFormat)
                else grid_fn(pair[0], pair[1], entry)
                for pair, every in zip(ranges[name], (by_step or ranges)[name], strict=True)
            ]  # fmt: skip
        inputs[name] = SiteQuant(weights.get(name), tuple(grids))
    return inputs


def format_grid(entry: OperandFormat, pair, every) -> ActivationGrid | Series:
    """Return how an activation is rounded as an `OperandFormat` says.

    Args:
      entry: with scales, dynamic or static.
      pair: (low, high) of all steps.
      every: (low [N], high [N]) of each.
    """
    require(entry.granularity != CHANNEL and entry.calibration is None, "activation",
            got=str(entry), expected=f"{TENSOR!r}, {TOKEN!r} or the size of a group, and the range "
            "of the calibration", remedy="channels and calibrations are of weights")  # fmt: skip
    require(entry.rounding in (None, NEAREST, STOCHASTIC, SHAPED), "activation", got=str(entry),
            expected=f"{NEAREST!r}, {STOCHASTIC!r} or {SHAPED!r}",
            remedy="sums and other sequences are of weights")  # fmt: skip
    key = jax.random.key(0) if entry.rounding == STOCHASTIC else None
    feedback = entry.rounding == SHAPED
    is_static = entry.scales in (STATIC, BY_STEP)
    if isinstance(entry.format, BlockFormat) or not is_static:
        sizes: dict[Any, int | None] = {None: None, TOKEN: None, TENSOR: 0}
        size = sizes.get(entry.granularity, entry.granularity)
        return ActivationGrid(entry.format, key=key, group_size=size, feedback=feedback)
    low, high = every if entry.scales == BY_STEP else pair
    grid = activation_grid(low, high, entry.format)
    grid = dataclasses.replace(grid, key=key, feedback=feedback)
    if entry.scales == STATIC:
        return grid
    keys = None if key is None else jax.random.split(key, len(low))
    return Series(dataclasses.replace(grid, key=keys))


def switched(inputs: Sequence[SiteQuant], which) -> SiteQuant:
    """Return the inputs of a site that has these by turns: `which` of them at each call."""

    def one(operands):
        first = operands[0]
        return first if all(o is first for o in operands) else Switch(tuple(operands), which)

    num = max(len(each.activations) for each in inputs)
    padded = [(*each.activations, *(None,) * (num - len(each.activations))) for each in inputs]
    activations = tuple(one(grids) for grids in zip(*padded, strict=True))
    return SiteQuant(one([each.weight for each in inputs]), activations)
