"""Error feedback of activations: at which sites what a call hands on makes the final error less."""

import dataclasses

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax._typing import Array, Key, PyTree
from qdiffjax.analysis.errors.site_variances import variances_of_ways
from qdiffjax.diffusion import Steps
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.rules import grids_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeedbackCriterion:
    """What the roundings of each site's activations alone make of E|x_0 error|^2, in two ways.

    independent: without feedback, roundings uncorrelated {site: [batch]}; fed_back: with it.
    """

    independent: dict[str, Array]
    fed_back: dict[str, Array]

    @property
    def ratio(self) -> dict[str, Array]:
        """With feedback over without, of means over samples {site: []}; NaN where nothing counts.

        Roundings of one size at every call leave a ratio of gains alone: it is 4 at most, 2 where
        gains decorrelate from call to call, and small where they change slowly.
        """
        return {name: jnp.mean(self.fed_back[name]) / jnp.mean(each)
                for name, each in self.independent.items()}  # fmt: skip

    @property
    def pays(self) -> dict[str, Array]:
        """Whether the ratio is below 1 {site: bool []}.

        Stochastic rounding has twice the variance of the residuals of nearest rounding: over it
        feedback pays below 2. Nearest rounding without feedback whose errors repeat from call to
        call, as they do where operands change slowly, adds more than `independent`.
        """
        return {name: ratio < 1 for name, ratio in self.ratio.items()}


def feedback_criterion(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    probes: Array,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
) -> FeedbackCriterion:
    """Predict at which sites error feedback of the activations pays, without a run of it.

        ratio_l = sum_ij E_v (G_{i+1,lj} - G_ilj)^2 r_ilj / sum_ij E_v G_ilj^2 r_ilj,   G_N = 0

    with G_i the gradient of <v, x_0> in the site's operands at call i, and r the variance of one
    rounding. With feedback call i adds the difference of the residuals before and after it, so that
    by summation by parts differences of gains along the run count in place of gains, if residuals
    are uncorrelated. Operands of one site are taken together, as a recipe does. Costs 2 sampling
    runs and an adjoint pass a probe, as one `activation_variances`, whose sums over steps these
    are.

    Args:
      q: the denoiser and its quantization, with feedback or without: its grids count.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      probes: v [num, batch, *shape], see `runs.signs`.
      key: noise of a stochastic sampler.
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Raises:
      ValueError: no rounded activation; differences to earlier calls, or weighed residuals.

    Source: summation by parts of the first-order error, docs/findings.md; the modulator is of
    Inose and Yasuda 1963.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> from qdiffjax.analysis import errors
      >>> half = qd.Denoiser(lambda p, x, t: p["w"] * x, {"w": jnp.array(0.5)}, qd.linear(), (4,))
      >>> steps = qd.ddim(half.schedule, 20)
      >>> calibration = qd.calibrate(half, steps, jax.random.key(0))
      >>> q = qd.quantize(calibration, "A8 static", sites=("input",))
      >>> x_T = jax.random.normal(jax.random.key(1), (2, 4))
      >>> probes = errors.signs(jax.random.key(2), 2, x_T)
      >>> bool(errors.feedback_criterion(q, x_T, steps, probes).pays["input"])
      True
    """
    names = [name for name, inputs in q.site_inputs.items()
             if any(grids_of(operand) for operand in inputs.activations)]  # fmt: skip
    require(names, "feedback_criterion", got="no rounded activation", expected="some",
            remedy="quantize with a recipe such as 'A8'")  # fmt: skip
    ledgers = variances_of_ways(q, x_T, steps, probes, (False, True), key=key, per_call=per_call)
    return FeedbackCriterion(*(
        {name: jnp.sum(each.contributions[name], axis=1) for name in names} for each in ledgers
    ))  # fmt: skip
