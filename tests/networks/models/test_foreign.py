"""Layouts of foreign weights, against torch's definitions written out in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models import foreign
from qdiffjax.networks.models.layers import MultiHead
from tests.tolerances import assert_close
from tests.worlds import quick_jit

RNG = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def load(net, sources, arrays, *inputs, **kwargs):
    """Parameters for `net` from `arrays`, and net with them as a function."""
    expected = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    params = foreign.load_foreign(arrays, expected, sources, **kwargs)
    return quick_jit(lambda *args: net.apply(params, *args))


def wrapped(layer):
    """The layer as the submodule `layer` of a network."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layer(name="layer")(x)

    return Net()


def torch_conv2d(x, weight, bias, stride, padding):
    """out[o, i, j] = bias[o] + sum weight[o, c, m, n] x[c, i s + m - p, j s + n - p]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    k = weight.shape[2]
    size = [(n - k) // stride + 1 for n in x.shape[1:]]
    out = np.zeros((weight.shape[0], *size))
    for i, j in np.ndindex(*size):
        window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
        out[:, i, j] = np.einsum("ocmn,cmn->o", weight, window) + bias
    return out


def torch_conv_transpose2d(x, weight, bias, stride, padding):
    """Each x[c, i, j] adds x[c, i, j] weight[c, o, m, n] at (i s + m - p, j s + n - p)."""
    k = weight.shape[2]
    out = np.zeros((weight.shape[1], *((n - 1) * stride + k for n in x.shape[1:])))
    for i, j in np.ndindex(*x.shape[1:]):
        block = np.einsum("c,comn->omn", x[:, i, j], weight)
        out[:, i * stride : i * stride + k, j * stride : j * stride + k] += block
    out = out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding]
    return out + bias[:, None, None]


def to_last(a):
    return a.transpose(1, 2, 0)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (2, 1, 0)])
def test_a_convolution_is_torchs(kernel, stride, padding):
    weight, bias, x = normal(5, 2, kernel, kernel), normal(5), normal(2, 6, 7)
    pads = [(padding, padding)] * 2
    net = wrapped(lambda name: nn.Conv(5, (kernel,) * 2, (stride,) * 2, pads, name=name))
    run = load(
        net, foreign.conv("layer", "c"), {"c.weight": weight, "c.bias": bias}, to_last(x)[None]
    )
    expected = to_last(torch_conv2d(np.float64(x), weight, bias, stride, padding))
    assert_close(run(to_last(x)[None])[0], expected)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (2, 1, 0)])
def test_a_transposed_convolution_is_torchs(kernel, stride, padding):
    weight, bias, x = normal(2, 5, kernel, kernel), normal(5), normal(2, 3, 4)
    pads = [(kernel - 1 - padding,) * 2] * 2
    net = wrapped(lambda name: nn.ConvTranspose(5, (kernel,) * 2, (stride,) * 2, pads, name=name))
    arrays = {"c.weight": weight, "c.bias": bias}
    run = load(net, foreign.conv_transpose("layer", "c"), arrays, to_last(x)[None])
    expected = to_last(torch_conv_transpose2d(np.float64(x), weight, bias, stride, padding))
    assert_close(run(to_last(x)[None])[0], expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_torchs(bias):
    weight, b, x = normal(5, 3), normal(5), normal(2, 3)
    net = wrapped(lambda name: nn.Dense(5, use_bias=bias, name=name))
    arrays = {"l.weight": weight} | ({"l.bias": b} if bias else {})
    run = load(net, foreign.linear("layer", "l", bias=bias), arrays, x)
    assert_close(run(x), np.float64(x) @ weight.T + (b if bias else 0))


def test_norms_over_channels_and_over_whole_images_are_torchs():
    x = normal(2, 3, 4, 2)
    standardize = lambda a, axes: (  # noqa: E731
        (a - a.mean(axes, keepdims=True)) / np.sqrt(a.var(axes, keepdims=True) + 1e-5)
    )
    gain, shift = normal(2), normal(2)
    net = wrapped(lambda name: nn.LayerNorm(1e-5, use_fast_variance=False, name=name))
    run = load(net, foreign.norm("layer", "n"), {"n.weight": gain, "n.bias": shift}, x)
    assert_close(run(x), standardize(np.float64(x), -1) * gain + shift, factor=64)
    gain, shift, axes = normal(2, 3, 4), normal(2, 3, 4), (-3, -2, -1)
    net = wrapped(lambda name: nn.LayerNorm(
        1e-5, use_fast_variance=False, reduction_axes=axes, feature_axes=axes, name=name
    ))  # fmt: skip
    source = {name: foreign.Source(f"n.{there}", foreign.channels_last)
              for name, there in (("layer/scale", "weight"), ("layer/bias", "bias"))}  # fmt: skip
    run = load(net, source, {"n.weight": gain, "n.bias": shift}, x)
    expected = standardize(np.float64(x), axes) * to_last(gain) + to_last(shift)
    assert_close(run(x), expected, factor=64)


def torch_self_attention(x, weight, bias, out_weight, out_bias, num_heads):
    """nn.MultiheadAttention of one sequence x [n, d]."""
    q, k, v = np.split(np.float64(x) @ weight.T + bias, 3, axis=-1)
    heads = []
    for part in zip(*(np.split(a, num_heads, axis=-1) for a in (q, k, v)), strict=True):
        logits = part[0] @ part[1].T / np.sqrt(part[0].shape[-1])
        p = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ part[2])
    return np.concatenate(heads, -1) @ out_weight.T + out_bias


def test_attention_with_a_fused_query_key_and_value_is_torchs(tmp_path):
    """Through a file, as a user does it."""
    arrays = {
        "a.in_proj.weight": normal(12, 4), "a.in_proj.bias": normal(12),
        "a.out.weight": normal(4, 4), "a.out.bias": normal(4), "a.version": normal(1),
    }  # fmt: skip
    np.savez(tmp_path / "weights.npz", **arrays)
    net, x = wrapped(lambda name: MultiHead(2, name=name)), normal(1, 5, 4)
    sources = {
        **foreign.fused_attention("layer", "a.in_proj"),
        **foreign.linear("layer/out", "a.out"),
    }
    with np.load(tmp_path / "weights.npz") as found:
        run = load(net, sources, dict(found), x, unused=["a.version"])
    expected = torch_self_attention(x[0], *list(arrays.values())[:4], num_heads=2)
    assert_close(run(x)[0], expected, factor=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a: s.pop("layer/bias"),
         r"1 parameters without a source: layer/bias, expected none; complete"),
        (lambda s, a: s.update({"other": foreign.Source("l.bias")}), r"do not exist: other"),
        (lambda s, a: a.pop("l.bias"), r"arrays that are not in the file: l.bias"),
        (lambda s, a: a.update(extra=np.ones(1)), r"arrays that nothing uses: extra"),
        (lambda s, a: s.update({"layer/kernel": foreign.Source("l.weight")}),
         r"\(5, 3\): got \(5, 3\) of it, expected \(3, 5\) for layer/kernel; another layout"),
    ],
    ids=["no source", "no parameter", "no array", "unused", "layout"],
)  # fmt: skip
def test_whatever_does_not_fit_is_named(change, message):
    sources = foreign.linear("layer", "l")
    arrays = {"l.weight": normal(5, 3), "l.bias": normal(5)}
    change(sources, arrays)
    with pytest.raises(ValueError, match=message):
        load(wrapped(lambda name: nn.Dense(5, name=name)), sources, arrays, jnp.ones((1, 3)))
