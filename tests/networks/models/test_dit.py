"""The transformer: published sizes, its blocks by hand, its conditions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models import dit
from qdiffjax.networks.models.dit import Block, DiT, position_table
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit, random_params

T = jnp.float32(7.0)
SMALL = {"patch": 2, "width": 8, "depth": 1, "num_heads": 2}


def count(shapes) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "width", "millions"),
    [(dit.dit_s_2, 384, 33), (dit.dit_b_2, 768, 130), (dit.dit_l_2, 1024, 458),
     (dit.dit_xl_2, 1152, 675)],
)  # fmt: skip
def test_the_sizes_are_those_of_the_paper(network, width, millions):
    """Peebles & Xie 2023, table 4; their code counts 675 129 632 with its fixed positions."""
    net = network(num_classes=1000, learn_sigma=True)
    x = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    out, shapes = jax.eval_shape(net.init_with_output, jax.random.key(0), x, T)
    assert abs(count(shapes) / 1e6 - millions) < 0.5
    if millions == 675:
        assert count(shapes) + 16 * 16 * width == 675_129_632
    assert out.shape == (1, 32, 32, 8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "patch"), [((2, 6, 10, 3), 2), ((1, 3, 3, 1), 1)])
def test_the_output_has_the_shape_and_dtype_of_x_and_parameters_are_float32(shape, patch, dtype):
    net = DiT(**{**SMALL, "patch": patch}, dtype=dtype)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, T)
    out = jax.eval_shape(net.apply, shapes, x, T)
    assert (out.shape, out.dtype) == (shape, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_a_fresh_block_is_the_identity_and_a_fresh_network_predicts_zero():
    block, x, emb = Block(2), normal32(0, 2, 3, 8), normal32(1, 2, 8)
    out, _ = quick_jit(block.init_with_output)(jax.random.key(0), x, emb, normal32(2, 1, 2, 5))
    np.testing.assert_array_equal(out, x)
    net, x = DiT(**SMALL), normal32(0, 1, 4, 4, 1)
    out, _ = quick_jit(net.init_with_output)(jax.random.key(0), x, T)
    np.testing.assert_array_equal(out, np.zeros(x.shape))


def test_position_vectors_are_sines_and_cosines_of_column_and_row():
    table = position_table(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for position in (column, row):
                angles = [position * 1.0, position * 0.01]  # 10000^(-j/2), j = 0, 1
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert_close(table[3 * row + column], np.float32(expected))


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def block_by_hand(params, x, emb, num_heads, mlp_epsilon=1e-6):
    """One adaLN-zero block for one sample x [n, d], emb [d], as in the paper, in NumPy."""
    p = jax.tree.map(np.float64, params)
    dense = lambda name, a: a @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    norm = lambda a, epsilon=1e-6: (  # noqa: E731
        (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + epsilon)
    )
    sub = lambda module, name, a: a @ module[name]["kernel"] + module[name]["bias"]  # noqa: E731
    silu = emb / (1 + np.exp(-emb))
    p["modulation"] = p["modulation"]["out"]
    b1, g1, a1, b2, g2, a2 = np.split(dense("modulation", silu), 6)
    y = norm(x) * (1 + g1) + b1
    heads = [
        np.split(sub(p["attention"], name, y), num_heads, axis=-1)
        for name in ("query", "key", "value")
    ]
    d = x.shape[-1] // num_heads
    mixed = [softmax(q @ k.T / np.sqrt(d)) @ v for q, k, v in zip(*heads, strict=True)]
    x = x + a1 * sub(p["attention"], "out", np.concatenate(mixed, -1))
    h = sub(p["mlp"], "up", norm(x, mlp_epsilon) * (1 + g2) + b2)
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + a2 * sub(p["mlp"], "down", h)


@pytest.mark.parametrize("mlp_epsilon", [1e-6, 0.5])
def test_a_block_is_the_equations_of_the_paper(mlp_epsilon):
    block, x, emb = (
        Block(2, jnp.float64, mlp_epsilon),
        np.float64(normal32(0, 3, 5, 8)),
        np.float64(normal32(0, 3, 8)),
    )
    params = jax.tree.map(np.float64, random_params(block, x, emb))
    got = quick_jit(block.apply)(params, x, emb)
    expected = [
        block_by_hand(params["params"], a, e, 2, mlp_epsilon) for a, e in zip(x, emb, strict=True)
    ]
    assert_close(got, np.stack(expected), factor=64)


def test_a_network_hands_its_blocks_the_epsilon_and_its_times_the_shift():
    x = normal32(1, 1, 4, 4, 1)
    nets = [DiT(**SMALL, **kw) for kw in ({}, {"freq_shift": 1}, {"mlp_epsilon": 0.5})]
    params = random_params(nets[0], x, T)
    plain, *others = (quick_jit(net.apply)(params, x, T) for net in nets)
    for other in others:
        assert jnp.abs(other - plain).max() > 1e-3 * jnp.abs(plain).max()


NET = DiT(**SMALL, num_classes=3, token_features=5)
X, TOKENS = normal32(0, 2, 4, 4, 1), normal32(3, 2, 3, 5)
TIMES, LABELS = jnp.asarray([3.0, 500.0], jnp.float32), jnp.asarray([0, 2])
run = quick_jit(NET.apply)


@pytest.fixture(scope="module")
def params():
    with jax.numpy_dtype_promotion("standard"):
        return random_params(NET, X, T)


def test_each_image_is_denoised_alone_at_its_own_time_class_and_tokens(params):
    both = run(params, X, TIMES, LABELS, TOKENS)
    swapped = (a[::-1] for a in (X, TIMES, LABELS, TOKENS))
    assert_close(run(params, *swapped)[::-1], both, factor=256)
    changes = [
        (X.at[1].set(9.0), TIMES, LABELS, TOKENS), (X, TIMES.at[1].set(9.0), LABELS, TOKENS),
        (X, TIMES, LABELS.at[1].set(1), TOKENS), (X, TIMES, LABELS, TOKENS.at[1].set(0.0)),
    ]  # fmt: skip
    for change in changes:
        other = run(params, *change)
        assert_close(other[0], both[0], factor=256)
        assert not np.allclose(other[1], both[1])


@pytest.mark.slow
def test_no_condition_is_the_null_class_and_the_learned_token(params):
    null = jnp.broadcast_to(params["params"]["tokens"]["null"], TOKENS.shape)  # three are one
    assert_close(run(params, X, TIMES, LABELS * 0 + 3, null), run(params, X, TIMES), factor=256)


def test_a_class_out_of_range_is_nan(params):
    out = run(params, X, TIMES, jnp.asarray([4, 2]), TOKENS)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


def test_tokens_are_a_set(params):
    out = run(params, X, TIMES, LABELS, TOKENS)
    assert_close(run(params, X, TIMES, LABELS, TOKENS[:, ::-1]), out, factor=256)


@pytest.mark.parametrize(
    ("arguments", "shape", "call", "message"),
    [
        ({}, (1, 5, 4, 1), {}, r"DiT: got x of shape \(1, 5, 4, 1\).*divisible by patch=2; pad"),
        ({}, (4, 4, 1), {}, r"DiT: got x of shape \(4, 4, 1\)"),
        ({"width": 6}, (1, 4, 4, 1), {}, r"width=6, expected a multiple of 4 and of num_heads=2"),
        ({}, (1, 4, 4, 1), {"label": 1}, r"got a label, expected none.*set num_classes"),
        ({}, (1, 4, 4, 1), {"tokens": jnp.zeros((1, 2, 3))}, r"no cross-attention; set token_feat"),
        ({"token_features": 5}, (1, 4, 4, 1), {"tokens": jnp.zeros((1, 2, 3))},
         r"tokens of shape \(1, 2, 3\), expected \[batch, m, 5\]"),
        ({"token_features": 5}, (2, 4, 4, 1), {"tokens": jnp.zeros((3, 2, 5))},
         r"tokens of shape \(3, 2, 5\) for 2 samples, expected \[2 or 1, m, 5\]"),
        ({"num_classes": 3}, (2, 4, 4, 1), {"label": np.zeros(5, int)},
         r"labels of shape \(5,\) for 2 samples, expected \[\] or \[2\]; give each"),
        ({"num_classes": 3}, (2, 4, 4, 1), {"label": np.zeros(2)}, "labels of type float64, expec"),
        ({"num_classes": 3}, (2, 4, 4, 1), {"label": np.array([-1, 3])},
         r"labels from -1 to 3, expected 0 \.\.\. 2, or 3 for no class; count classes from 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, shape, call, message):
    net = DiT(**{**SMALL, **arguments})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros(shape), T, **call), jax.random.key(0))


@pytest.mark.parametrize("shape", [(3,), (2, 1)])
def test_times_of_another_batch_are_refused(shape):
    times = jnp.zeros(shape, jnp.float32)
    with pytest.raises(ValueError, match=r"got times of shape .* for 2 samples, expected \[\] or"):
        jax.eval_shape(lambda k: NET.init(k, X, times), jax.random.key(0))
