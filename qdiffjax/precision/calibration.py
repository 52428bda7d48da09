"""What is measured once of a denoiser, whatever the recipe; and its quantized self."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import diffusion
from qdiffjax._checks import check_count, check_key, check_names, check_number, check_type, require
from qdiffjax._typing import EpsFn
from qdiffjax.denoiser import Denoiser, Draw
from qdiffjax.precision.diagnosis import diagnose
from qdiffjax.precision.inputs import as_data, inputs_of
from qdiffjax.precision.noise_marks import NoiseMarks, marks_of
from qdiffjax.precision.printing import calibration_table
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.ranges import Ranges, observe_ranges
from qdiffjax.precision.recipe import Recipe
from qdiffjax.precision.refusals import arguments, check_noise, check_steps
from qdiffjax.precision.settings import assign
from qdiffjax.precision.weights import round_weights, weight_operands
from qdiffjax.sites import Sites

NUM_SAMPLES = 32  # of calibration


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Calibration:
    """A denoiser with everything that is measured once; a pytree.

    Attributes:
      denoiser: in full precision.
      sites: where it multiplies; static.
      weights: the weight operand of every site that has one, by name.
      ranges: (low, high) of each activation operand by site, for all steps [num_steps] or for one.
      noise: marks of the noises that were seen, which may not be scored; static.

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
    noise: NoiseMarks = dataclasses.field(default=NoiseMarks(), metadata={"static": True})

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
    return Calibration(denoiser, diagnosis.sites, weights, ranges, marks_of(key, draw.x_T))


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
        `Calibration.widened`; None is 1.2 for words with activations="static", and 1 for a
        `Recipe` and where the words themselves say "static".
      rounding: `key` of what is random; `round_fn`, `calibrate_fn`, `granularity`, `format_fn`,
        `adjust_fn` of the weights, see `round_weights`; `round_fn=shaped(key)` is a rounding for
        each call of the sampler.

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
        c.denoiser, inputs, widths=recipe.widths(), settings=chosen.settings, noise=c.noise
    )  # fmt: skip
