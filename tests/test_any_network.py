"""Whatever a network is made of, takes and predicts, its errors add up on its user's own run."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qdiffjax import comparisons, diffusion, precision
from qdiffjax.analysis.errors import ablation, ledger
from qdiffjax.analysis.gains import segment_gains
from qdiffjax.denoiser import Denoiser, edm_preconditioning
from qdiffjax.networks import from_equinox, from_linen, from_nnx
from qdiffjax.networks.models.dit import DiT
from tests.worlds import attend, convolve, normal, quick_jit, random_params, randomized

NUM_STEPS, NUM_CELLS, BITS = 6, 10, 6
LABELS, NUM_CLASSES = jnp.array([0, 1, 2, 1]), 3  # no two neighbours are alike
KEYS = jax.random.split(jax.random.key(11), 3)
SCHEDULE = diffusion.linear(40, 1e-3, 0.1)
DDIM = diffusion.ddim(SCHEDULE, NUM_STEPS)
IMAGE = (4, 4, 2)


def in_float64(tree):
    """Rounding to even must not depend on how a program was compiled, so float64 everywhere."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


# ------------------------------------------------------------------ networks


def dit():
    """Our own, in linen; the label is an argument of `apply`."""
    net = DiT(patch=2, width=8, depth=1, num_heads=2, num_classes=NUM_CLASSES, dtype=jnp.float64)
    params = random_params(net, jnp.zeros((1, *IMAGE)), jnp.float64(1), label=LABELS[:1])
    return from_linen(net, in_float64(params))


class LinenNet(nn.Module):
    """Convolutions, an embedding and dropout that has to be switched off."""

    @nn.compact
    def __call__(self, x, t, label, train):
        h = nn.Conv(8, (3, 3), name="conv_in")(x)
        h = h + nn.Embed(NUM_CLASSES, 8, name="label")(label)[:, None, None] + jnp.sin(t / 9)
        h = nn.Dropout(0.5, deterministic=not train)(nn.gelu(nn.GroupNorm(2)(h)))
        return nn.Conv(2, (3, 3), name="conv_out")(h)


def linen():
    net = LinenNet()
    params = random_params(net, jnp.zeros((1, *IMAGE)), 1.0, LABELS[:1], train=False)
    return from_linen(net, in_float64(params), train=False)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.label = nnx.Embed(NUM_CLASSES, 8, rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x, t, label):
        h = self.norm(self.conv(x)) + self.label(label)[:, None, None]
        return self.out(nnx.silu(h + jnp.sin(t / 9)))


def flax_nnx():
    fn, shapes = from_nnx(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))))
    return fn, in_float64(randomized(shapes))


class EqxNet(eqx.Module):
    """Of one sample, channels first, and the time before the sample."""

    conv: eqx.nn.Conv2d
    label: eqx.nn.Embedding
    out: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(2, 8, 3, padding=1, key=key)
        self.label = eqx.nn.Embedding(NUM_CLASSES, 8, key=key)
        self.out = eqx.nn.Linear(8, 2, key=key)

    def __call__(self, t, x, label):
        h = self.conv(x.transpose(2, 0, 1)).reshape(8, -1).T
        h = jnp.tanh(h + self.label(label)[None] + jnp.sin(t / 9))
        return jax.vmap(self.out)(h).reshape(x.shape)


def equinox():
    net = EqxNet(jax.random.key(0))
    fn, params = from_equinox(net, lambda module, x, t, label: module(t, x, label))
    return fn, in_float64(params)


PLAIN = {
    "conv": normal(5, 3, 3, 4, 6, scale=0.2), "out": {"kernel": normal(6, 6, 2, scale=0.5)},
    "attn": {name: {"kernel": normal(i, 6, 6, scale=0.4)}
             for i, name in enumerate(("query", "key", "value"))},
}  # fmt: skip


def plain_fn(params, x, t, image):
    """A convolution and attention, with an image as the condition."""
    h = convolve(jnp.concatenate([x, image], axis=-1), params["conv"])
    y = jnp.tanh(h + jnp.sin(t / 9)).reshape(len(x), -1, 6)
    return ((y + attend(params["attn"], y)) @ params["out"]["kernel"]).reshape(x.shape)


DENSE = {
    "in": normal(1, 8, 16, scale=0.15), "time": normal(2, 2, 16), "label": normal(3, 3, 16),
    "middle": normal(4, 16, 16, scale=0.3), "out": normal(5, 16, 8, scale=0.3),
}  # fmt: skip


def each_fn(params, x, t, label):
    """A dense network that wants one time for each sample."""
    angles = jnp.stack([jnp.sin(t / 9), jnp.cos(t / 9)], axis=1)
    h = jnp.tanh(x @ params["in"] + angles @ params["time"] + params["label"][label])
    return jnp.tanh(h @ params["middle"]) @ params["out"]


def dense_fn(params, x, t, label):
    """The same of one time, which is in [0, 1] or a logarithm."""
    return each_fn(params, x, jnp.full(len(x), 9 * t), label)


def of_images(made, **fields):
    return Denoiser(*made, SCHEDULE, IMAGE, **({"cond": LABELS} | fields)), DDIM


def of_vectors(process, times, prediction):
    fields = (process, (8,), prediction, LABELS)
    return Denoiser(dense_fn, DENSE, *fields), diffusion.euler(process, times)


EDM = diffusion.EDM()
UNIT_TIMES = np.linspace(0.98, 0.0, NUM_STEPS + 1)
NETWORKS = {
    "dit": lambda: of_images(dit()),
    "linen": lambda: of_images(linen()),
    "nnx": lambda: of_images(flax_nnx()),
    "equinox": lambda: of_images(equinox()),
    "plain": lambda: of_images((plain_fn, PLAIN), cond=normal(9, 4, *IMAGE)),
    "times": lambda: (Denoiser(each_fn, DENSE, SCHEDULE, (8,), cond=LABELS), DDIM),
    "x_0": lambda: of_vectors(diffusion.VP(), np.linspace(0.6, 1e-3, NUM_STEPS + 1), "x_0"),
    "v": lambda: of_vectors(diffusion.Cosine(), UNIT_TIMES, "v"),
    "flow": lambda: of_vectors(diffusion.Flow(), UNIT_TIMES, "flow"),
    "edm": lambda: of_vectors(
        EDM, diffusion.karras_times(EDM, 80.0, 0.01, NUM_STEPS), edm_preconditioning()
    ),
    "guided": lambda: guided(),
}


def guided():
    denoiser, steps = of_vectors(diffusion.Cosine(), UNIT_TIMES, "v")
    return denoiser.guided(2.0, 0), steps


# ------------------------------------------------------------------ one program for each


@functools.cache
def studied(name):
    """All that is asked of one network, in one program."""
    denoiser, steps = NETWORKS[name]()
    x_T = in_float64(denoiser.draw(KEYS[0], 8, steps.t[0]).x_T)
    study = quick_jit(functools.partial(_studied, steps=steps))
    return jax.device_get(study(denoiser, x_T))


@pytest.fixture(autouse=True)
def _standard_promotion(standard_promotion):
    """For Flax's norms."""


def _studied(denoiser, x_T, *, steps):
    measured = precision.calibrate(denoiser, steps, KEYS[1], x_T=x_T)
    recipe = precision.uniform(measured.sites, weight_bits=BITS, activation_bits=BITS)
    q, x_T = precision.quantize(measured, recipe).given(denoiser.cond), x_T[:4]
    full = precision.full_call(q)
    xs = diffusion.sample(full, x_T, steps).states
    run = comparisons.measured(q, x_T, xs, steps)
    entries = ledger.attribution(q, x_T, steps, num_nodes=4, x_0=xs[-1])
    forecast, actual = _cells(q, x_T, xs, steps)
    gains = segment_gains(full, run.xs, run.xs_hat, steps, key=KEYS[2], num_iterations=8).norms
    bounded = comparisons.bounded(run, comparisons.propagated(q, run, steps), gains, steps)
    return {
        "total": ledger.total(entries), "errors": run.errors, "forecast": forecast,
        "actual": actual, "bounded": bounded, "predicted": comparisons.predicted(q, xs, steps),
        "exchanged": full(x_T, steps.t[0])[0] - _exchanged(q, x_T, steps.t[0]),
    }  # fmt: skip


def _exchanged(q, x_T, t):
    others = q.given(jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), q.cond))
    return precision.full_call(others)(x_T, t)[0]


def _cells(q, x_T, xs, steps):
    """Forecast effects of random cells on a direction of x_0, and those of rerunning them."""
    names = tuple(q.site_inputs)
    all_cells = np.random.default_rng(0).permutation(len(names) * NUM_STEPS)
    sites, firsts = np.divmod(all_cells[:NUM_CELLS], NUM_STEPS)
    direction = normal(20, *q.denoiser.shape)
    along = lambda x: jnp.sum(x * direction)  # noqa: E731
    forecast = ablation.forecast(q, x_T, steps, along).contributions

    def rerun(cell):
        site, first = cell
        on = {name: site == i for i, name in enumerate(names)}
        return jax.vmap(along)(ablation.rerun(q, xs, steps, first, on) - xs[-1])

    actual = jax.lax.map(rerun, (jnp.asarray(sites), jnp.asarray(firsts)))
    return jnp.stack([forecast[names[i]][:, t] for i, t in zip(sites, firsts, strict=True)]), actual


FAST = ("plain", "flow", "guided")
EVERY_NETWORK = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NETWORKS]
)


@pytest.mark.slow
@EVERY_NETWORK
def test_the_entries_of_the_ledger_sum_to_the_change_of_the_users_own_batched_run(name):
    result = studied(name)
    change = np.mean(result["errors"][-1].reshape(4, -1) ** 2, axis=1)
    assert np.all(change > 1e-6)  # errors well above those of floating point
    assert np.all(np.max(np.abs(result["exchanged"].reshape(4, -1)), axis=1) > 1e-3)  # labels count
    np.testing.assert_allclose(result["total"], change, rtol=1e-3)


@EVERY_NETWORK
def test_quantizing_one_cell_alone_and_rerunning_does_what_was_forecast(name):
    result = studied(name)
    assert np.corrcoef(result["forecast"].ravel(), result["actual"].ravel())[0, 1] >= 0.99


@EVERY_NETWORK
def test_predictions_are_of_the_size_of_the_error_and_bounds_hold(name):
    result = studied(name)
    bounded, rms = result["bounded"], lambda e: np.sqrt(np.mean(e[-1] ** 2))
    measured = np.linalg.norm(result["errors"].reshape(NUM_STEPS + 1, 4, -1), axis=-1)
    for bound in (bounded.gronwall, bounded.remainder):
        assert np.all(bound * (1 + 1e-9) >= measured)
    for predicted in result["predicted"]:
        assert 0.5 < rms(predicted) / rms(result["errors"]) < 2
