"""Guarantees of a quantized denoiser from fresh noise: what its next sample and its law keep to.

    splits = split_noise(key)                     three keys, of noises that have nothing in common
    q = quantize(calibrate(denoiser, steps, splits.calibrate), recipe)
    choice = choose_recipe({name: q, ...}, steps, splits.choose, 512, p_value_fn)
    promise(draw_scores(choice.q, steps, splits.promise, 512))

What was calibrated or chosen on a noise carries its mark (`precision.NoiseMarks`), and
`draw_scores` refuses to score it there. Scales of activations must be found sample by sample: where
a grid is shared by a batch, the batch is what is independent, not the sample.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import measures
from qdiffjax._checks import (
    FUNCTION,
    OPEN_SHARE,
    check_count,
    check_key,
    check_number,
    check_type,
    checked,
    require,
)
from qdiffjax._tables import Table, number
from qdiffjax._typing import Key
from qdiffjax.analysis import guarantees
from qdiffjax.analysis.errors import prediction
from qdiffjax.analysis.guarantees import Conformal, FixedSequence
from qdiffjax.diffusion import Steps
from qdiffjax.precision import NoiseMarks, Quantized, final_samples, marks_of
from qdiffjax.precision.refusals import check_quantized, check_sampling

ALPHA, DELTA = 0.1, 0.05


class Splits(NamedTuple):
    """Keys of three noises: for ranges and cures, for choices among recipes, and for promises."""

    calibrate: Key
    choose: Key
    promise: Key


class Scores(NamedTuple):
    """Errors of independent samples against full precision, on common noise; NumPy, float64.

    rmse: of each sample [num]; squares: mean squared error of its elements, both samples clipped
    to the box [num]; most: what that cannot exceed, the squared width of the box; size: number of
    elements of a sample; noise: marks of what was drawn.
    """

    rmse: np.ndarray
    squares: np.ndarray
    most: float
    size: int
    noise: NoiseMarks


@checked(key=check_key)
def split_noise(key: Key) -> Splits:
    """Return three keys, so that no noise is calibrated on, chosen on and scored twice.

    Example:
      >>> import jax, qdiffjax as qd
      >>> qd.split_noise(jax.random.key(0))._fields
      ('calibrate', 'choose', 'promise')
    """
    return Splits(*jax.random.split(key, 3))


def draw_scores(
    q: Quantized,
    steps: Steps,
    key: Key,
    num_samples: int = 512,
    *,
    box: tuple[float, float] = (-1.0, 1.0),
    batch_size: int | None = None,
    progress: bool = False,
) -> Scores:
    """Return the error of each of `num_samples` samples to the one of full precision.

    Both runs share initial noise, conditions and the sampler's noise. Costs two sampling runs.

    Args:
      q: a denoiser that `quantize` or `lower` returned.
      steps: the sampler.
      key: of noise and conditions that q has not seen, such as `split_noise(key).promise`.
      num_samples: how many.
      box: (low, high) to which both samples are clipped for the squares that are bounded.
      batch_size, progress: as in `sample`.

    Raises:
      ValueError: noise that q was calibrated or chosen on; a box that is none; samples that are
        not finite.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> splits = qd.split_noise(jax.random.key(0))
      >>> calibration = qd.calibrate(denoiser, steps, splits.calibrate)
      >>> q = qd.quantize(calibration, "W8A8")
      >>> scores = qd.draw_scores(q, steps, splits.promise, 40)
      >>> scores.rmse.shape
      (40,)
      >>> qd.draw_scores(q, steps, splits.calibrate, 40)
      Traceback (most recent call last):
        ...
      ValueError: key: got noise that was calibrated or chosen on (1 of 1 marks), expected noise \
that nothing was fitted to; take another key, such as split_noise(key).promise.
    """
    check_quantized(q)
    check_sampling(q.denoiser, steps, key, num_samples, batch_size=batch_size)
    check_number("box", box)
    require(np.shape(box) == (2,) and box[0] < box[1], "box", got=box,
            expected="(low, high), low below high",
            remedy="that of images is (-1, 1)")  # fmt: skip
    low, high = box
    noise = marks_of(key)
    q.noise.check_fresh(noise, "key")
    parts = []
    for own, x_T, key_noise in measures.starts(
        q, steps, key, num_samples, None, batch_size, progress
    ):
        drawn = marks_of(x_T=x_T)
        q.noise.check_fresh(drawn, "key")
        noise |= drawn
        parts.append(measures.program(_scored, low, high)(own, x_T, key_noise, steps))
    rmse, squares = (np.concatenate([np.asarray(part[i], np.float64) for part in parts])
                     for i in (0, 1))  # fmt: skip
    require(np.isfinite(rmse).all(), "draw_scores", got="samples with NaN",
            expected="finite samples",
            remedy="check parameters, sampler and recipe")  # fmt: skip
    most = float(high - low) ** 2
    size = int(np.prod(x_T.shape[1:]))
    return Scores(rmse, np.clip(squares, 0.0, most), most, size, noise)  # clips float32's last bit


def _scored(low, high, q, x_T, key, steps):
    x_0, x_hat_0 = (final_samples(q, x_T, steps, key, in_full=full) for full in (True, False))
    ends = (jnp.clip(x, low, high) for x in (x_0, x_hat_0))
    clipped = prediction.root_mean_square(jnp.subtract(*ends))
    return prediction.root_mean_square(x_hat_0 - x_0), clipped**2


@dataclasses.dataclass(frozen=True, repr=False)
class Promise:
    """What is guaranteed of a quantized denoiser; prints as a table.

    next_sample: of the RMSE of one more random sample; w2: what W2 between the laws of clipped
    samples does not exceed with probability 1 - delta, RMS per element; w2_measured: the same of
    these samples alone; w2_floor: what this many samples can promise at best; size: elements of a
    sample, W2 of whole samples being w2 sqrt(size).
    """

    next_sample: Conformal
    w2: float
    w2_measured: float
    w2_floor: float
    size: int

    def table(self) -> Table:
        """Return the guarantees as a table."""
        one = self.next_sample
        assert one.delta is not None
        assert one.coverage is not None
        level = f"guaranteed ({1 - one.alpha:g}, {1 - one.delta:g})"
        rows = (
            ("RMSE of the next sample", number(float(one.bound)), level),
            ("W2 of the clipped laws, RMS per element", number(self.w2),
             f"guaranteed ({1 - one.delta:g})"),
            ("the same of these samples", number(self.w2_measured), "measured, an upper bound"),
        )  # fmt: skip
        notes = (
            f"The next sample's error is at most that with probability {1 - one.alpha:g} over it "
            f"and these; with {1 - one.delta:g} over these, for at least "
            f"{100 * one.coverage:.1f} % of all samples.",
            f"W2 of whole samples: {number(self.w2 * self.size**0.5)}. {one.num} scores can "
            f"promise {number(self.w2_floor)} at best.",
            "Of fresh noise and conditions drawn as these; of no chosen seed.",
        )
        columns = ("quantity", "at most", "what it is")
        return Table(f"Guaranteed from {one.num} fresh noises", columns, rows, notes)

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@checked(alpha=OPEN_SHARE, delta=OPEN_SHARE)
def promise(scores: Scores, alpha: float = ALPHA, delta: float = DELTA) -> Promise:
    """Return what these scores guarantee of the next random sample, and of W2.

    Both samples of a pair, clipped, couple the clipped laws, so that W2^2 <= E|difference|^2, a
    mean of scores in [0, most]: see `guarantees.betting_upper`. Nothing follows for laws that are
    not clipped. Each line holds by itself, with its own probability.

    Args:
      scores: of a recipe that was fixed without their noises, see `draw_scores`.
      alpha: probability that the next sample's error is larger.
      delta: probability that these scores are a bad draw.

    Raises:
      ValueError: fewer scores than alpha needs.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> splits = qd.split_noise(jax.random.key(0))
      >>> calibration = qd.calibrate(denoiser, steps, splits.calibrate)
      >>> q = qd.quantize(calibration, "W8A8")
      >>> promised = qd.promise(qd.draw_scores(q, steps, splits.promise, 40), alpha=0.1)
      >>> promised.next_sample.rank, promised.w2_measured < promised.w2
      (37, True)
    """
    check_type("scores", scores, Scores, remedy="draw_scores(q, steps, key)")
    w2, measured, floor = (
        float(np.sqrt(value))
        for value in (
            guarantees.betting_upper(scores.squares, delta, scores.most),
            np.mean(scores.squares),
            guarantees.mean_floor(len(scores.squares), delta, scores.most),
        )
    )
    return Promise(guarantees.conformal_bound(scores.rmse, alpha, delta), w2, measured, floor,
                   scores.size)  # fmt: skip


@checked(rms=lambda what, value: check_number(what, value, above=0), delta=OPEN_SHARE)
def samples_for_w2(rms: float, delta: float = DELTA, factor: float = 3.0, most: float = 4.0) -> int:
    """Return how many scores promise W2 within `factor` times its measured size, beforehand.

    Args:
      rms: root mean square per element of the difference of clipped samples, as forecast.
      delta: as for `promise`.
      factor: promised over measured.
      most: squared width of the box.

    Raises:
      ValueError: a factor of at most 1, or one that takes the promise beyond the box.
    """
    check_number("factor", factor, above=1)
    return guarantees.samples_for_mean(rms**2, (factor * rms) ** 2, delta, most)


class Choice(NamedTuple):
    """The last recipe, in a fixed order, that was shown to keep its promise.

    name: its name, None if none was; q: it, marked with the noises of the choice; p_values: of
    those that were tested; tests: what passed and failed.
    """

    name: str | None
    q: Quantized | None
    p_values: dict[str, float]
    tests: FixedSequence


@checked(num_samples=check_count, p_value_fn=FUNCTION, delta=OPEN_SHARE)
def choose_recipe(
    recipes: Mapping[str, Quantized],
    steps: Steps,
    key: Key,
    num_samples: int,
    p_value_fn: Callable[[Scores], Any],
    delta: float = DELTA,
    **options,
) -> Choice:
    """Return the last recipe in order that keeps its promise, of those before the first failure.

    With probability 1 - delta every recipe that passed keeps its promise. All are scored on the
    same noises, none beyond the first failure. What is chosen has seen them, and is refused by
    `draw_scores` there: what its own error is, is promised on a third noise.

    Args:
      recipes: by name, from the one that is forecast to err least to the cheapest; order and
        promise fixed without this noise.
      steps: the sampler.
      key: of noise that none of them has seen.
      num_samples: how many.
      p_value_fn: scores -> p-value of "the promise is broken", such as
        `lambda s: guarantees.share_p_value(s.rmse, tolerance=0.1, share=0.05)`.
      delta: probability that a recipe that passed breaks its promise.
      options: of `draw_scores`.

    Raises:
      ValueError: no recipes; noise that one of them was calibrated on.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> splits = qd.split_noise(jax.random.key(0))
      >>> calibration = qd.calibrate(denoiser, steps, splits.calibrate)
      >>> recipes = {name: qd.quantize(calibration, name) for name in ("W8A8", "W2A2")}
      >>> def p_value(scores):
      ...     return qd.analysis.guarantees.share_p_value(scores.rmse, tolerance=0.1, share=0.1)
      >>> choice = qd.choose_recipe(recipes, steps, splits.choose, 40, p_value)
      >>> choice.name, choice.tests.failed
      ('W8A8', 'W2A2')
    """
    require(recipes, "recipes", got="none", expected="at least one", remedy="quantize(...) some")
    for q in recipes.values():
        check_quantized(q)
        q.noise.check_fresh(marks_of(key), "key")
    p_values: dict[str, float] = {}
    seen = NoiseMarks()
    for name, q in recipes.items():
        scores = draw_scores(q, steps, key, num_samples, **options)
        seen |= scores.noise
        p_values[name] = float(p_value_fn(scores))
        if p_values[name] > delta:
            break
    tests = guarantees.fixed_sequence(p_values, delta)
    if not tests.passed:
        return Choice(None, None, p_values, tests)
    name = tests.passed[-1]
    chosen = dataclasses.replace(recipes[name], noise=recipes[name].noise | seen)
    return Choice(name, chosen, p_values, tests)
