"""The derivative through a whole quantized sampler is that of the sampler with frozen rounding.

The straight-through rule differentiates a smooth function: every rounding offset and every clip
decision is what it was on the reference run. Here that function is written out, with offsets and
decisions recorded on one run and replayed on others, and differentiated by central differences.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks.models.unet import UNet
from qdiffjax.precision import inputs
from qdiffjax.sites import list_sites, transform
from tests import worlds
from tests.tolerances import assert_close
from tests.worlds import normal

BITS = 8


class Frozen(NamedTuple):
    """One rounded operand as a smooth function: inside x + value, outside value."""

    inside: Any
    value: Any


def record(site, op, operands, inputs):
    """Quantize, written here independently, and return what a replay needs."""
    values, frozen = list(operands), []
    if inputs.weight is not None:
        values[site.weight] = inputs.weight
    for index, how in zip(site.activations, inputs.activations, strict=True):
        x = values[index]
        low, high = (
            (jnp.asarray(end, how.zero_point.dtype) - how.zero_point).astype(x.dtype)
            for end in (how.format.qmin, how.format.qmax)
        )
        x_hat = how.scale * jnp.clip(jnp.round(x / how.scale), low, high)
        inside = (x / how.scale >= low) & (x / how.scale <= high)
        frozen.append(Frozen(inside, jnp.where(inside, x_hat - x, x_hat)))
        values[index] = x_hat
    return op(*values), tuple(frozen)


def replay(site, op, operands, inputs):
    weight, frozen = inputs
    values = list(operands)
    if weight is not None:
        values[site.weight] = weight
    for index, how in zip(site.activations, frozen, strict=True):
        values[index] = jnp.where(how.inside, values[index] + how.value, how.value)
    return op(*values), None


def weight_scale(site, w):
    """One symmetric step for each output channel."""
    return jnp.max(jnp.abs(w), axis=site.contract_axes[site.weight], keepdims=True) / (
        2 ** (BITS - 1) - 1
    )


class Subject:
    """A denoiser, its sampler, and three ways to run it: quantized, recorded, replayed."""

    def __init__(self, fn, params, x_T, steps, key):
        self.fn, self.params, self.x_T, self.steps, self.key = fn, params, x_T, steps, key
        self.sites = list_sites(fn, params, x_T, jnp.float64(1))
        self.weights_of = lambda p: precision.weight_operands(fn, p, x_T, jnp.float64(1))
        self.recipe = precision.uniform(self.sites, weight_bits=BITS, activation_bits=BITS)
        ranges = jax.jit(
            lambda: precision.over_steps(precision.observe_ranges(fn, params, steps, x_T, key=key))
        )()
        # Narrower than the data and lopsided, so that some elements clip at either end.
        self.ranges = jax.tree.map(lambda r: 0.83 * r, ranges)

    def sample(self, call, x_T, per_call=None):
        return diffusion.sample(call, x_T, self.steps, key=self.key, per_call=per_call)

    def quantization(self, params):
        weights = precision.round_weights(self.weights_of(params), self.sites, self.recipe)
        own = inputs.site_inputs(self.recipe, weights, self.ranges)
        return precision.Quantized(Denoiser(self.fn, params), own)

    def quantized(self, params, x_T):
        return self.sample(precision.quantized_call(self.quantization(params)), x_T).x_0

    def recorded(self, params, x_T):
        """Frozen activations [N] by site and weight offsets round(w / scale) - w / scale."""
        q, g = self.quantization(params), transform(self.fn, record)
        call = lambda x, t, _, state: (*g(q.params, x, t, site_inputs=q.site_inputs), state)  # noqa: E731
        trajectory = self.sample(call, x_T)
        weights, by_name = self.weights_of(params), {s.name: s for s in self.sites}
        scaled = {n: w / weight_scale(by_name[n], w) for n, w in weights.items()}
        offsets = {n: jnp.round(v) - v for n, v in scaled.items()}
        return trajectory.outputs, offsets, trajectory.x_0

    def replayed(self, params, x_T, frozen, offsets):
        weights, by_name = self.weights_of(params), {s.name: s for s in self.sites}
        hats = {n: w + weight_scale(by_name[n], w) * offsets[n] for n, w in weights.items()}
        g = transform(self.fn, replay)

        def call(x, t, frozen, state=()):
            inputs = {name: (hats.get(name), frozen[name]) for name in frozen}
            return g(params, x, t, site_inputs=inputs)[0], None, state

        return self.sample(call, x_T, per_call=frozen).x_0


def unet():
    net = UNet(channels=(8,), num_blocks=0, attention=(False,), patch=1, dtype=jnp.float64)
    x_T = normal(50, 1, 8, 8, 1)

    def fn(params, x, t):
        return net.apply(params, x, t)

    shapes = jax.eval_shape(lambda key: net.init(key, x_T, jnp.float64(1)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape)), shapes)
    return Subject(fn, params, x_T, diffusion.ddim(worlds.SCHEDULE, 3), None)


def network():
    return Subject(worlds.net_fn, worlds.PARAMS, worlds.X_T, worlds.DDPM, worlds.KEY)


@functools.cache
def studied(make):
    """Reference run of a subject and compiled derivative, replay and pullback."""
    s = make()
    frozen, offsets, x_0 = jax.jit(s.recorded)(s.params, s.x_T)

    @jax.jit
    def derivative(dparams, dx_T, u):
        point = (s.params, s.x_T)
        y, jv = jax.jvp(s.quantized, point, (dparams, dx_T))
        return y, jv, jax.vjp(s.quantized, *point)[1](u)

    replayed = jax.jit(lambda params, x_T: s.replayed(params, x_T, frozen, offsets))
    return s, frozen, x_0, derivative, replayed


def direction(s, along):
    """A random tangent of the parameters, of x_T, or of both."""
    rng = np.random.default_rng(60)
    tangent = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), (s.params, s.x_T))
    on = {"params": (1.0, 0.0), "x_T": (0.0, 1.0), "both": (1.0, 1.0)}[along]
    return tuple(
        jax.tree.map(lambda a, c=c: c * a, part) for part, c in zip(tangent, on, strict=True)
    )


SUBJECTS = pytest.mark.parametrize("make", [network, unet], ids=["network", "unet"])
ALONG = pytest.mark.parametrize("along", ["x_T", "params", "both"])


@pytest.mark.slow
@SUBJECTS
def test_the_replayed_sampler_is_the_quantized_one_on_the_reference_run(make):
    s, frozen, x_0, derivative, replayed = studied(make)
    y = derivative(*direction(s, "both"), jnp.ones(s.x_T.shape))[0]
    assert_close(x_0, y, factor=256)
    assert_close(replayed(s.params, s.x_T), y, factor=256)
    inside = [f.inside for f in jax.tree.leaves(frozen, is_leaf=lambda n: isinstance(n, Frozen))]
    assert 0.5 < np.mean(np.concatenate([np.ravel(m) for m in inside])) < 0.99


@SUBJECTS
@ALONG
def test_the_derivative_is_that_of_the_sampler_with_frozen_rounding(make, along):
    s, _, _, derivative, replayed = studied(make)
    tangent = direction(s, along)
    jv = derivative(*tangent, jnp.ones(s.x_T.shape))[1]
    h = 1e-6

    def moved(sign):
        return replayed(*jax.tree.map(lambda p, d: p + sign * h * d, (s.params, s.x_T), tangent))

    difference = (moved(1) - moved(-1)) / (2 * h)
    assert np.max(np.abs(difference)) > 0.01
    np.testing.assert_allclose(jv, difference, rtol=0, atol=1e-6 * np.max(np.abs(difference)))


@SUBJECTS
@ALONG
def test_forward_and_reverse_mode_are_adjoint(make, along):
    s, _, _, derivative, _ = studied(make)
    tangent, u = direction(s, along), normal(61, *s.x_T.shape)
    _, jv, pulled = derivative(*tangent, u)
    pairs = zip(jax.tree.leaves(pulled), jax.tree.leaves(tangent), strict=True)
    np.testing.assert_allclose(sum(np.vdot(a, b) for a, b in pairs), np.vdot(u, jv), rtol=1e-9)
