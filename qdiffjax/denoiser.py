"""A denoiser: the function that samplers call, with its parameters and its schedule."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion
from qdiffjax._checks import (
    check_callable,
    check_count,
    check_key,
    check_number,
    require,
    suggest,
)
from qdiffjax._conditions import check_cond, check_labels, checked_shape
from qdiffjax._signature import uniform_call
from qdiffjax._typing import EpsFn
from qdiffjax.diffusion import NoiseLevel
from qdiffjax.diffusion.parameterizations import PredictionFn
from qdiffjax.sites import Sites, edge, list_sites, with_values
from qdiffjax.sites.values import checked_kinds


class Codec(NamedTuple):
    """A trained autoencoder; its latents have unit variance on its training data."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    config: Any


# The words for what a network predicts.
PREDICTIONS: dict[str, PredictionFn] = {
    "eps": diffusion.eps_prediction, "x_0": diffusion.x0_prediction,
    "v": diffusion.v_prediction, "score": diffusion.score_prediction,
    "flow": diffusion.flow_prediction,
}  # fmt: skip
PREDICTIONS["x0"] = PREDICTIONS["x_0"]
COND_STREAM = 2**32 - 1  # what is folded into a key for conditions; samples fold in 0, 1, ...


class Preconditioning(NamedTuple):
    """What stands between a raw network F and the process: x_t is scaled, t is shown otherwise.

    out = F(scale(level) x, time(t, level)) and out = p x_0 + q eps by `prediction`.

    prediction: level -> (p, q), see `diffusion.parameterizations`; scale: level -> factor of x;
    time: (t, level) -> what the network is shown.

    Example:
      >>> import qdiffjax as qd
      >>> scale = lambda level: 1 / level.alpha
      >>> scaled = qd.Preconditioning(lambda level: (1, 0), scale, lambda t, _: t)
      >>> denoiser = qd.Denoiser(lambda params, x, t: x, {}, qd.VP(), (2,), prediction=scaled)
    """

    prediction: PredictionFn
    scale: Callable[[NoiseLevel], Any]
    time: Callable[[Any, NoiseLevel], Any]


@functools.cache
def edm_preconditioning(sigma_data: float = 0.5) -> Preconditioning:
    """Return EDM's preconditioning of a raw network F; Karras et al. 2022, table 1.

        D(x / alpha; s) = c_skip x / alpha + c_out F(c_in x / alpha; log(s) / 4),
        c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2)

    with x = alpha x_0 + sigma eps and s = sigma / alpha, so that it is EDM's own on EDM's process
    and means the same on every other. Hence F = ((1 - c_skip) x_0 - c_skip s eps) / c_out.

    Args:
      sigma_data: d, the standard deviation of the data.

    Example:
      >>> import qdiffjax as qd
      >>> level = qd.EDM()(2.0)
      >>> round(float(qd.edm_preconditioning(0.5).scale(level)), 4)  # 1 / sqrt(2^2 + 0.5^2)
      0.4851
    """
    check_number("sigma_data", sigma_data, above=0)

    def total(level):  # alpha sqrt(s^2 + d^2)
        return jnp.sqrt(level.sigma**2 + (level.alpha * sigma_data) ** 2)

    def prediction(level):
        # (1 - c_skip) / c_out and c_skip s / c_out, without the division by s
        return level.sigma / (total(level) * sigma_data), -level.alpha * sigma_data / total(level)

    return Preconditioning(
        prediction,
        lambda level: 1 / total(level),
        lambda t, level: jnp.log(level.sigma / level.alpha) / 4,
    )


class Guidance(NamedTuple):
    """Classifier-free guidance: its scale w, a number or function of t, and the empty condition."""

    scale: Any
    null: Any


class Draw(NamedTuple):
    """Where sampling runs start: noise x_T [num, *shape], and conditions, leaves [num, ...]."""

    x_T: Any
    cond: Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Denoiser:
    """A network that samplers can call, whatever it predicts; a pytree of `params` and `cond`.

    Its sites `input` and `output` are the network's own: inside the conversion to eps, inside
    preconditioning and guidance, which stay in full precision.

    Attributes:
      net_fn: (params, x [batch, *shape], t []) -> prediction [batch, *shape]; any function. With
        `cond` it is given that too: a tuple as several arguments, a dict as keyword arguments,
        anything else as one. A network that takes a time for each sample gets t [batch].
      params: its parameters, a pytree; whatever is not in it is no weight.
      schedule: the forward process, t -> (alpha, sigma); None only if nothing is to be sampled.
      shape: of one sample.
      prediction: "eps", "x_0", "v", "score", "flow", a function level -> (p, q) with
        out = p x_0 + q eps, or a `Preconditioning` such as `edm_preconditioning()`.
      cond: conditions of samples: a pytree with leaves [num, ...], sample i taking entry i mod num,
        or a function (key, num) -> such a pytree; None for none.
      output: which part of a network's result is its prediction: an index or key of a tuple or
        dict, or a function of the result such as `lambda out: out[..., :3]`; None takes it whole.
      config: a `networks.ModelConfig`, of networks that this package builds.
      codec: what decodes samples into images; None if they are images.
      guidance: classifier-free guidance, see `guided`; None for none.
      values: kinds of stored values that are sites too, see `with_values`; () for none.

    Raises:
      ValueError: an unknown word for `prediction`; conditions without an axis of samples, or of
        different lengths; a shape that is none.

    Example:
      >>> import jax.numpy as jnp
      >>> from qdiffjax import Denoiser, diffusion
      >>> net_fn = lambda params, x, t, label: x * params["gain"][label][:, None]
      >>> params = {"gain": jnp.array([0.5, 0.6])}
      >>> labels = jnp.array([0, 1, 1])
      >>> denoiser = Denoiser(net_fn, params, diffusion.linear(), (2,), cond=labels)
      >>> denoiser.eps_fn(params, jnp.ones((3, 2)), jnp.float32(10), labels).shape
      (3, 2)
    """

    net_fn: Callable[..., Any]
    params: Any
    schedule: Any = None
    shape: Any = None
    prediction: str | PredictionFn | Preconditioning = "eps"
    cond: Any = None
    output: Any = None
    config: Any = None
    codec: Codec | None = None
    guidance: Guidance | None = None
    values: tuple[str, ...] = ()

    def __post_init__(self):
        check_callable("net_fn", self.net_fn, "(params, x, t) -> prediction")
        require(self.schedule is None or hasattr(self.schedule, "exact"), "schedule",
                got=f"a {type(self.schedule).__name__}",
                expected="a DiscreteSchedule or a Process", remedy="such as linear() or Flow()",
                error=TypeError)  # fmt: skip
        is_word = isinstance(self.prediction, str)
        is_known = self.prediction in PREDICTIONS if is_word else (
            callable(self.prediction) or isinstance(self.prediction, Preconditioning)
        )  # fmt: skip
        require(is_known, "prediction", got=repr(self.prediction),
                expected=f"one of {sorted(PREDICTIONS)}, a function or a Preconditioning",
                remedy=suggest(str(self.prediction), sorted(PREDICTIONS)))  # fmt: skip
        if self.shape is not None:
            object.__setattr__(self, "shape", checked_shape(self.shape))
        if self.cond is not None and not callable(self.cond):
            check_cond(self.cond)
        if self.values:
            checked_kinds(self.values)

    def __repr__(self):
        num = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        word, kind = self.prediction, type(self.prediction).__name__
        predicts = word if isinstance(word, str) else getattr(word, "__name__", kind)
        taken = "" if self.cond is None else ", with conditions"
        return (f"Denoiser of samples {self.shape}, predicts {predicts}, {num:,} parameters, "
                f"{type(self.schedule).__name__}{taken}")  # fmt: skip

    @property
    def eps_fn(self) -> EpsFn:
        """The network as (params, x [batch, *shape], t [], cond=None) -> eps.

        The same object for equal denoisers, whatever their parameters.
        """
        return _eps_fn(_Static((self.net_fn, self.schedule, self.shape, self.prediction,
                                self.output, self.guidance, self.values)))  # fmt: skip

    def conditioned(self, cond) -> "Denoiser":
        """Return the denoiser with conditions, a pytree with leaves [num, ...] or (key, num) -> it.

        Raises:
          ValueError: conditions without an axis of samples; labels that this network does not know.
        """
        num = getattr(self.config, "num_classes", None)
        if num is not None and not callable(cond):
            require(num, got=f"label {cond}", expected="none; this network knows no classes",
                    remedy="leave it out")  # fmt: skip
            check_labels(cond, num)
            cond = jnp.atleast_1d(jnp.asarray(cond, jnp.int32))
        return dataclasses.replace(self, cond=cond)

    def at(self, index) -> "Denoiser":
        """Return it with the conditions of some samples, an index or slice of them."""
        return dataclasses.replace(self, cond=jax.tree.map(lambda leaf: leaf[index], self.cond))

    def guided(self, scale, null) -> "Denoiser":
        """Return the denoiser with classifier-free guidance, both branches in one call.

            out = (1 - w) net(x, t, null) + w net(x, t, cond)

        Ho & Salimans 2022, eq. 6, with w = 1 + their w; see `diffusion.guided`. The sites `input`
        and `output` are those of the network, of both branches.

        Args:
          scale: w, a number or a function of t.
          null: the empty condition, leaves that broadcast to those of cond.
        """
        if not callable(scale):
            check_number("scale", scale)
        return dataclasses.replace(self, guidance=Guidance(scale, null))

    def with_values(self, *kinds: str) -> "Denoiser":
        """Return the denoiser whose stored values of these kinds are sites too: the same numbers.

        Args:
          kinds: some of "residual", "skip", "softmax", "norm", "named", see `sites.values`; none
            for all of them. Recipes in words leave them out unless they are named.

        Raises:
          ValueError: a word that is none of them.
        """
        return dataclasses.replace(self, values=checked_kinds(kinds))

    def sites(self, batch: int = 1) -> Sites:
        """Return where the network multiplies, for a batch of samples; nothing is computed.

        Raises:
          ValueError: a denoiser without a shape, or with a condition that it does not take.
        """
        return list_sites(self.eps_fn, self.params, *self.arguments(batch))

    def arguments(self, batch: int = 1) -> tuple:
        """Return the shapes of x, t and, if there is one, the condition of a batch of samples."""
        require(self.shape is not None, "denoiser", got="no shape", expected="that of a sample",
                remedy="Denoiser(net_fn, params, schedule, shape)")  # fmt: skip
        check_count("batch", batch)
        x, t = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((batch, *self.shape), ()))
        cond = jax.eval_shape(lambda: self.draw_cond(jax.random.key(0), batch))
        return (x, t) if cond is None else (x, t, cond)

    def draw_cond(self, key, num: int):
        """Return the conditions of `num` samples, leaves [num, ...]; None if there are none.

        A function of (key, num) is given a key of its own, so that conditions drawn like noise are
        not the noise of `draw`.
        """
        if callable(self.cond):
            require(key is not None, "draw_cond", got="no key", expected="one, for the function "
                    "that draws conditions", remedy="pass jax.random.key(seed)")  # fmt: skip
            cond = self.cond(jax.random.fold_in(key, COND_STREAM), num)
            check_cond(cond, num)
            return cond
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.arange(num) % len(leaf)], self.cond)

    def draw(self, key, num: int, t=None) -> Draw:
        """Return the noise and the conditions of `num` samples.

            x_T = sigma(t) z,   z ~ N(0, I) of sample i from fold_in(key, i)

        Sample i is the same for every `num`; variance-preserving noise is taken as N(0, I).

        Args:
          key: of the noise and of `cond_fn`.
          num: how many.
          t: time of the noise end, `steps.t[0]`; None for unit variance.

        Raises:
          ValueError: a denoiser without a shape.
        """
        require(self.shape is not None, "denoiser", got="no shape", expected="that of a sample",
                remedy="Denoiser(net_fn, params, schedule, shape)")  # fmt: skip
        check_key("key", key)
        check_count("num", num)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
        z = jax.vmap(lambda k: jax.random.normal(k, self.shape, jnp.float32))(keys)
        return Draw(z * jnp.float32(self.noise_scale(t)), self.draw_cond(key, num))

    def noise_scale(self, t) -> float:
        """Return the standard deviation of x_T at the time t of the noise end."""
        if t is None or self.schedule is None:
            return 1.0
        level = self.schedule.exact(np.asarray(t, np.float64))
        total = float(np.sqrt(level.alpha**2 + level.sigma**2))
        # Where variance is preserved the little signal left at T has unit variance with the noise.
        return 1.0 if abs(total - 1) < 1e-6 else float(level.sigma)


class _Static:
    """What of a denoiser is no array; equal if its parts are the same objects or equal words."""

    def __init__(self, parts):
        self.parts = parts

    def __eq__(self, other):
        return isinstance(other, _Static) and all(map(_is_same, self.parts, other.parts))

    def __hash__(self):
        try:
            return hash(self.parts[0])
        except TypeError:  # a callable record of arrays
            return hash(type(self.parts[0]))


def _is_same(one, other) -> bool:
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except (TypeError, ValueError):  # arrays, whose comparison is no single truth
        return False


def _flatten(denoiser: Denoiser):
    d, draws = denoiser, callable(denoiser.cond)
    static = (d.net_fn, d.schedule, d.shape, d.prediction, d.cond if draws else None, d.output,
              d.config, d.codec, d.guidance, d.values)  # fmt: skip
    return (d.params, None if draws else d.cond), _Static(static)


def _unflatten(static: _Static, children) -> Denoiser:
    net_fn, schedule, shape, prediction, cond_fn, output, config, codec, *rest = static.parts
    denoiser = object.__new__(Denoiser)  # children need not be arrays, so nothing is checked
    fields = (net_fn, children[0], schedule, shape, prediction,
              children[1] if cond_fn is None else cond_fn, output, config, codec,
              *rest)  # fmt: skip
    for field, value in zip(dataclasses.fields(Denoiser), fields, strict=True):
        object.__setattr__(denoiser, field.name, value)
    return denoiser


jax.tree_util.register_pytree_node(Denoiser, _flatten, _unflatten)


@functools.lru_cache(maxsize=128)
def _eps_fn(static: _Static) -> EpsFn:
    net_fn, schedule, shape, prediction, output, guidance, values = static.parts
    network = uniform_call(net_fn, output, shape)
    if values:
        network = with_values(network, *values)

    if prediction == "eps" and guidance is None:
        return network

    def marked(params, x, t, cond=None):
        if isinstance(prediction, Preconditioning):
            level = diffusion.level_like(schedule, t, x)
            x = x * jnp.asarray(prediction.scale(level)).astype(x.dtype)
            t = jnp.asarray(prediction.time(t, schedule(t))).astype(x.dtype)
        return edge(network(params, edge(x, "input"), t, cond), "output")

    whole = marked if guidance is None else _guided(marked, guidance)
    if prediction == "eps":
        return whole
    require(schedule is not None, "denoiser", got=f"no schedule, prediction={prediction!r}",
            expected="the forward process", remedy="Denoiser(..., schedule=)")  # fmt: skip
    return diffusion.as_eps(whole, schedule, _prediction_fn(prediction))


def _guided(net_fn, guidance: Guidance):
    both = diffusion.guided(net_fn, guidance.null, guidance.scale)

    def guided_fn(params, x, t, cond=None):
        require(cond is not None, "guided", got="no conditions", expected="those of the samples",
                remedy="Denoiser(..., cond=) or .conditioned(cond)")  # fmt: skip
        return both(params, x, t, cond)

    return guided_fn


def _prediction_fn(prediction) -> PredictionFn:
    if isinstance(prediction, Preconditioning):
        return prediction.prediction
    return PREDICTIONS[prediction] if isinstance(prediction, str) else prediction
