"""Under the rule `plain` a transformed function is the function, bit for bit."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.sites import rules, site, transform
from tests import worlds
from tests.worlds import normal

PARAMS = {"a": normal(1, 4, 4), "b": normal(2, 4, 4), "bias": normal(3, 4), "gain": normal(4, 4)}
X, T = normal(5, 3, 4), jnp.float64(0.3)


def assert_plain_is_bit_identical(fn, *args):
    plain = transform(fn, rules.plain)
    expected = jax.jit(fn)(*args)
    actual, outputs = jax.jit(plain)(*args)
    assert outputs == {}
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        worlds.linen_unet, worlds.nnx_net, worlds.eqx_net, worlds.handwritten,
        worlds.layers, worlds.linen_layers,
    ],
    ids=lambda network: network.__name__,
)  # fmt: skip
def test_plain_is_bit_identical_on_every_kind_of_network(network):
    net = network()
    assert_plain_is_bit_identical(net.fn, *net.args)


def nested_jit(p, x, t):
    inner = jax.jit(lambda h: jnp.tanh(h @ p["a"]))
    return inner(jax.jit(inner)(x)) + t


def checkpointed(p, x, t):
    return jax.checkpoint(lambda p, h: jnp.tanh(h @ p["a"]) @ p["b"])(p, x) * t


def nested_scan(p, x, t):
    def outer(h, w):
        h, ys = jax.lax.scan(lambda h, v: (jnp.tanh(h @ w + v[None]), h @ w), h, x[:2])
        return h, ys.sum(0)

    h, ys = jax.lax.scan(outer, x, jnp.stack([p["a"], p["b"]]), reverse=True, unroll=2)
    return h + ys.sum(0) * t


def tied_and_transposed(p, x, t):
    return (x @ p["a"]) @ p["a"].T + t * (p["a"] @ x.T).T


def several_leaves(p, x, t):
    weight = (p["a"] * p["gain"][:, None]).reshape(2, 2, 4).reshape(4, 4)
    return x @ weight + p["bias"][None] * t


def closed_over(p, x, t):
    return (x @ PARAMS["b"]) * t + jnp.asarray(np.eye(4)[:3]) * p["bias"][None]


def bfloat16(p, x, t):
    half = jnp.bfloat16
    h = x.astype(half) @ p["a"].astype(half)
    return (jnp.tanh(h + t.astype(half)) @ p["b"].astype(half)).astype(x.dtype)


def with_opaque(p, x, t):
    def body(state):
        return state[0] + 1, jnp.tanh(state[1] @ p["a"])

    _, h = jax.lax.while_loop(lambda state: state[0] < 3, body, (0, x))
    return jax.lax.cond(t > 0, lambda h: h @ p["b"], lambda h: h, h)


def two_outputs(p, x, t):
    return {"eps": x @ p["a"], "rest": (t, x[0] @ p["b"])}


def softmax_and_relu(p, x, t):
    return jax.nn.softmax(jax.nn.relu(x @ p["a"]) * t, axis=-1)  # both are custom_jvp


@pytest.mark.parametrize(
    "fn",
    [
        nested_jit, checkpointed, nested_scan, tied_and_transposed, several_leaves, closed_over,
        bfloat16, with_opaque, two_outputs, softmax_and_relu,
    ],
)  # fmt: skip
def test_plain_is_bit_identical_through_every_construct(fn):
    assert_plain_is_bit_identical(fn, PARAMS, X, T)


def test_plain_is_bit_identical_in_bfloat16_compute_with_linen():
    dense, x = nn.Dense(4, dtype=jnp.bfloat16), normal(1, 3, 8, dtype=np.float32)
    params = worlds.randomized(jax.eval_shape(lambda key: dense.init(key, x), jax.random.key(0)))
    assert_plain_is_bit_identical(
        lambda p, x, t: dense.apply(p, x) * t, params, x, jnp.bfloat16(0.5)
    )


def test_plain_takes_python_numbers_keys_and_extra_arguments():
    def fn(p, x, t, key, scale):
        return x @ p["a"] * t * p["gain_of_all"] + scale["s"] * jax.random.normal(key, x.shape)

    args = ({**PARAMS, "gain_of_all": 2.0}, X, 0.5, jax.random.key(0), {"s": 3.0})
    assert_plain_is_bit_identical(fn, *args)


def test_plain_gradients_are_those_of_the_function():
    net = worlds.layers()
    plain = transform(net.fn, rules.plain)
    expected = jax.jit(jax.grad(lambda p: jnp.sum(net.fn(p, net.x, net.t) ** 2)))(net.params)
    actual = jax.jit(jax.grad(lambda p: jnp.sum(plain(p, net.x, net.t)[0] ** 2)))(net.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), actual, expected)


def test_a_marked_value_is_returned_unchanged():
    def marked(p, x, t):
        return site(x @ p["a"], "logits") * t

    def unmarked(p, x, t):
        return (x @ p["a"]) * t

    assert_plain_is_bit_identical(marked, PARAMS, X, T)
    got, want = jax.jit(marked)(PARAMS, X, T), jax.jit(unmarked)(PARAMS, X, T)
    assert np.asarray(got).tobytes() == np.asarray(want).tobytes()
