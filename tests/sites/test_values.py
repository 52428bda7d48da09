"""Stored values as sites: what is recognised, what is not, and that nothing else changes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qdiffjax.sites import list_sites, rules, transform, with_values
from qdiffjax.sites.values import KINDS
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close
from tests.worlds import normal

W = {"w": normal(1, 4, 4), "g": normal(2, 4)}
X, T = normal(3, 2, 3, 5, 4), jnp.float64(0.3)
X32 = X.astype(jnp.float32)


def values(fn, params=W, x=X, kinds=()):
    """(name, kind) of the stored values of a function."""
    return [(s.name, s.kind) for s in list_sites(with_values(fn, *kinds), params, x, T)
            if s.is_value]  # fmt: skip


def after(layer):
    """A network that is one product and a layer (params, h) -> h after it."""
    return lambda p, x, t: layer(p, x @ p["w"])


def last(h, statistic=jnp.mean):
    return statistic(h, axis=-1, keepdims=True)


def exponential(h):
    return jnp.exp(h - jax.lax.stop_gradient(last(h, jnp.max)))


SOFTMAXES = {
    "jax.nn": lambda p, h: jax.nn.softmax(h),
    "masked": lambda p, h: jax.nn.softmax(h, where=h > -1),
    "cast": lambda p, h: jax.nn.softmax(h).astype(jnp.float32),
    "by hand": lambda p, h: (lambda e: e / last(e, jnp.sum))(exponential(h)),
    "reciprocal": lambda p, h: (lambda e: e * (1 / last(e, jnp.sum)))(exponential(h)),
    "power": lambda p, h: (lambda e: e * last(e, jnp.sum) ** -1)(exponential(h)),
    "exp of log": lambda p, h: jnp.exp(jax.nn.log_softmax(h)),
    "logsumexp": lambda p, h: jnp.exp(h - jax.nn.logsumexp(h, axis=-1, keepdims=True)),
}
NORMS = {
    "standardize": lambda p, h: jax.nn.standardize(h),
    "rms": lambda p, h: h * jax.lax.rsqrt(last(h**2) + 1e-6) * p["g"][None, None, None],
    "in float32": lambda p, h: jax.nn.standardize(h.astype(jnp.float32)).astype(h.dtype),
    "gain first": lambda p, h: p["g"][None, None, None] * (h / jnp.sqrt(last(h * h) + 1e-6)),
    "std": lambda p, h: (h - last(h)) / (last(h, jnp.std) + 1e-6),
    "var": lambda p, h: (h - last(h)) / jnp.sqrt(last(h, jnp.var) + 1e-6),
    "length": lambda p, h: h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-6),
}
SUMS = {
    "identity": lambda p, h: h + jnp.tanh(h) @ p["w"],
    "scaled": lambda p, h: (h + h @ p["w"]) / np.sqrt(2.0),
    "three": lambda p, h: h + h @ p["w"] + jnp.tanh(h) @ p["w"],
}
SKIPS = {"channels": lambda p, h: jnp.concatenate([h, jnp.tanh(h) @ p["w"]], -1)}
KNOWN = {"softmax": SOFTMAXES, "norm": NORMS, "residual": SUMS, "skip": SKIPS}


@pytest.mark.parametrize(("kind", "form"), [(k, f) for k, forms in KNOWN.items() for f in forms])
def test_a_value_is_found_once_however_it_is_written(kind, form):
    assert values(after(KNOWN[kind][form])) == [(f"{kind}_0", kind)]


def rotary(p, h):
    a, b, c, s = h[..., :2], h[..., 2:], np.cos(0.3), np.sin(0.3)
    return jnp.concatenate([a * c - b * s, b * c + a * s], -1)


OTHERS = {
    "bias": lambda p, h: h + p["g"][None, None, None],
    "itself": lambda p, h: h + jnp.tanh(h),
    "rotary": rotary,
    "squeezed": lambda p, h: h + jnp.mean(h, (1, 2), keepdims=True) @ p["w"],
    "stored statistics": lambda p, h: h * jax.lax.rsqrt(p["g"] ** 2 + 1.0)[None, None, None],
    "mean": lambda p, h: h - last(h),
    "padded": lambda p, h: jnp.concatenate([h, jnp.zeros((2, 3, 5, 1))], -1),
} | {name: lambda p, h, name=name: getattr(jax.nn, name)(h)
     for name in ("gelu", "silu", "softplus", "elu", "mish", "hard_swish", "glu", "log_softmax",
                  "sigmoid", "squareplus")}  # fmt: skip


@pytest.mark.parametrize("form", OTHERS)
def test_biases_and_activation_functions_are_no_stored_values(form):
    assert values(after(OTHERS[form])) == []


def test_what_comes_of_the_time_is_no_branch():
    def fn(p, x, t):
        time = (t * p["g"])[None] @ p["w"] + jnp.sin(t) * p["g"][None]
        return x @ p["w"] + jnp.broadcast_to(time[:, None, None], x.shape)

    assert values(fn) == []


LINEN = {
    "layer": nn.LayerNorm(), "group": nn.GroupNorm(2), "rms": nn.RMSNorm(),
    "instance": nn.InstanceNorm(), "slow": nn.LayerNorm(use_fast_variance=False),
}  # fmt: skip


@pytest.mark.parametrize("form", LINEN)
def test_norms_of_linen_are_found_under_their_parameters(form):
    net = nn.Sequential([nn.Dense(4), LINEN[form]])
    params = worlds.random_params(net, X32)
    folder = "layers_0" if form == "rms" else "layers_1"  # a shift comes last, and names it
    assert values(lambda p, x, t: net.apply(p, x), params, X32) == [(f"{folder}/norm_0", "norm")]


@pytest.mark.parametrize("make", [
    lambda r: nnx.LayerNorm(4, rngs=r), lambda r: nnx.GroupNorm(4, num_groups=2, rngs=r),
    lambda r: nnx.RMSNorm(4, rngs=r),
], ids=["layer", "group", "rms"])  # fmt: skip
def test_norms_of_nnx_are_found(make):
    graph, state = nnx.split(make(nnx.Rngs(0)))
    assert values(lambda p, x, t: nnx.merge(graph, p)(x), state, X32) == [("norm_0", "norm")]


@pytest.mark.parametrize(("norm", "x"), [
    (eqx.nn.LayerNorm(4), X[0, 0]), (eqx.nn.RMSNorm(4), X[0, 0]),
    (eqx.nn.GroupNorm(2, 4), X[0].transpose(0, 2, 1)),
], ids=["layer", "rms", "group"])  # fmt: skip
def test_norms_of_equinox_are_found(norm, x):
    params, static = eqx.partition(norm, eqx.is_array)
    fn = lambda p, x, t: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    assert values(fn, params, x) == [("norm_0", "norm")]


FOUND = {
    "linen_unet": {"residual": 8, "skip": 4, "norm": 16, "softmax": 1},
    "nnx_net": {"residual": 1, "norm": 1, "softmax": 1},
    "eqx_net": {"residual": 1, "softmax": 1},
    "handwritten": {"residual": 1, "softmax": 1},
    "layers": {"residual": 3},
    "linen_layers": {"residual": 3},
}


@pytest.mark.parametrize("name", FOUND)
def test_other_sites_keep_their_names_and_the_network_its_bits(name):
    net = worlds.NETWORKS[name]()
    fn = with_values(net.fn)
    listed = list_sites(fn, *net.args)
    assert tuple(s for s in listed if not s.is_value) == tuple(list_sites(net.fn, *net.args))
    counts = {kind: sum(s.kind == kind for s in listed) for kind in KINDS}
    assert counts == dict.fromkeys(KINDS, 0) | FOUND[name]
    plain = np.asarray(jax.jit(net.fn)(*net.args))
    assert np.asarray(jax.jit(fn)(*net.args)).tobytes() == plain.tobytes()
    out, _ = jax.jit(transform(fn, rules.plain))(*net.args)
    assert np.asarray(out).tobytes() == plain.tobytes()
    _, seen = transform(fn, rules.observe(lambda v: v))(*net.args)
    for site in listed:
        shapes = [site.shapes[i] for i in site.activations]
        assert [v.shape for v in seen[site.name]] == shapes


def test_the_values_at_the_sites_are_those_of_the_network():
    net = worlds.handwritten()
    expected = {}

    def record(name, index, value):
        expected[name, index] = value
        return value

    by_hand.handwritten(*net.args, a=record)
    _, seen = jax.jit(transform(with_values(net.fn), rules.observe(lambda v: v)))(*net.args)
    assert_close(seen["attn/softmax_0"][0], expected["attn/dot_1", 0], factor=64)
    assert_close(seen["attn/residual_0"][0], expected["out/kernel", 0], factor=64)


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, jax.checkpoint], ids=lambda w: w.__name__)
def test_names_and_kinds_are_stable_under_transformations(wrap):
    def block(p, x):
        h = jax.nn.standardize(x @ p["w"])
        h = h + jax.nn.softmax(h @ p["w"])
        return jnp.concatenate([h, h @ p["w"]], -1)

    expected = [("norm_0", "norm"), ("softmax_0", "softmax"), ("residual_0", "residual"),
                ("skip_0", "skip")]  # fmt: skip
    assert values(lambda p, x, t: block(p, x)) == expected
    assert values(lambda p, x, t: wrap(lambda x: block(p, x))(x)) == expected


def test_a_value_in_a_scan_is_one_site_for_each_iteration():
    net = worlds.layers()
    found = list_sites(with_values(net.fn, "residual"), *net.args)
    names = [s.name for s in found if s.is_value]
    assert names == [f"layers/residual_0[{i}]" for i in range(3)]
    _, seen = jax.jit(transform(with_values(net.fn), rules.observe(lambda v: v)))(*net.args)
    h = np.asarray(net.x)
    for i, w in enumerate(np.asarray(net.params["layers"]["kernel"])):
        h = h + np.tanh(h @ w + float(net.t))
        assert_close(seen[names[i]][0], h, factor=64)


def test_what_the_author_names_is_a_site_of_that_name_on_request():
    fn = after(lambda p, h: checkpoint_name(jnp.tanh(h), "block/act"))
    assert values(fn) == values(fn, kinds=("named",)) == [("block/act", "named")]
    assert values(fn, kinds=("softmax",)) == []
    assert [s.name for s in list_sites(fn, W, X, T)] == ["input", "w", "output"]


def test_a_norm_ends_after_gains_and_shifts_and_before_what_acts_on_x():
    modulated = lambda p, h: jax.nn.standardize(h) * (1 + p["g"])[None, None, None] + 2.0  # noqa: E731
    _, seen = transform(
        with_values(after(lambda p, h: jax.nn.silu(modulated(p, h)))), rules.collect_operands
    )(W, X, T)
    assert_close(seen["norm_0"][0], modulated(W, X @ W["w"]), factor=64)


def test_words_that_are_no_kinds_are_refused():
    with pytest.raises(ValueError, match="residual"):
        with_values(worlds.handwritten().fn, "residuals")
