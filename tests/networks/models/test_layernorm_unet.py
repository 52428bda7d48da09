"""The public MNIST UNet: what its first norm hides, and the authors' network in torch.

Of random weights, and of the trained ones where they are, see `layernorm_unet`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.models.layernorm_unet import (
    NET,
    STAGES,
    TIMES,
    UNUSED,
    load,
    trained_arrays,
)
from tests.tolerances import assert_close
from tests.worlds import quick_jit

SIZES = {"b1": 28, "b2": 14, "b3": 7, "b_mid": 3, "b4": 7, "b5": 14, "b_out": 28}
INPUTS = {"b1": 1, "b2": 10, "b3": 20, "b_mid": 40, "b4": 80, "b5": 40, "b_out": 20}

pytestmark = pytest.mark.usefixtures("standard_promotion")


def foreign_shapes():
    """Names and shapes of the authors' file."""
    found = {
        "time_embed.weight": (1000, 100),
        "conv_out.weight": (1, 10, 3, 3),
        "conv_out.bias": (1,),
    }
    for stage, widths in STAGES.items():
        c = INPUTS[stage]
        for j, shape in ((0, (c, 100)), (2, (c, c))):
            found |= {f"{TIMES[stage]}.{j}.weight": shape, f"{TIMES[stage]}.{j}.bias": (c,)}
        for i, width in enumerate(widths):
            name, side = f"{stage}.{i}", SIZES[stage]
            found |= {f"{name}.ln.{kind}": (c, side, side) for kind in ("weight", "bias")}
            found |= {f"{name}.conv1.weight": (width, c, 3, 3), f"{name}.conv1.bias": (width,)}
            found |= {f"{name}.conv2.weight": (width, width, 3, 3), f"{name}.conv2.bias": (width,)}
            c = width
    resizers = {"down1": (10, 4), "down2": (20, 4), "down3.0": (40, 2), "down3.2": (40, 4),
                "up1.0": (40, 4), "up1.2": (40, 2), "up2": (20, 4), "up3": (10, 4)}  # fmt: skip
    for name, (c, k) in resizers.items():
        found |= {f"{name}.weight": (c, c, k, k), f"{name}.bias": (c,)}
    return found


def random_arrays():
    """Weights that neither vanish nor explode on the way."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in foreign_shapes().items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 and ".ln." not in name else 1
        arrays[name] = (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def network():
    with jax.numpy_dtype_promotion("standard"):
        return load(random_arrays())


run = quick_jit(NET.apply)


def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 28, 28, 1)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("arrays_fn", [random_arrays, trained_arrays])
def test_the_sources_name_every_array_of_the_file(arrays_fn):
    arrays, params = load(arrays_fn())
    assert {name: a.shape for name, a in arrays.items()} == foreign_shapes()
    assert sum(a.size for a in jax.tree.leaves(params)) == 591_172


@pytest.mark.slow
def test_eps_is_blind_to_the_mean_and_scale_of_the_image(network):
    """Its first operation standardizes the one-channel image (up to the norm's epsilon, 1e-5)."""
    _, params = network
    x, t = images(), jnp.asarray([30.0, 30.0], jnp.float32)
    base = np.asarray(run(params, x, t))
    blind, sees = (np.abs(run(params, y, t) - base).max() for y in (5 * x + 3, x**2))
    assert blind < 1e-4 * np.abs(base).max()
    assert sees > 100 * blind


def test_times_are_rows_of_the_time_table_from_one(network):
    _, params = network
    first, last = (jnp.full(2, t, jnp.float32) for t in (1, 1000))
    table = params["params"]["time_embed"]["embedding"]
    swapped = {"params": {**params["params"], "time_embed": {"embedding": table[::-1]}}}
    expected = run(params, images(), first)
    assert np.isfinite(expected).all()
    assert_close(run(swapped, images(), last), expected, factor=256)
    assert not np.allclose(run(params, images(), last), expected)


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"expected \[batch, 28, 28, 1\]; pad or crop"):
        jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)), jnp.float32(1))


def torch_network(torch, arrays):
    """The authors' network as a function of (x [b, 1, 28, 28], t [b] from 0), in torch."""
    functional = torch.nn.functional
    w = {name: torch.from_numpy(a) for name, a in arrays.items()}

    def stage(name, h, emb):
        te = TIMES[name]
        time = functional.linear(emb, w[f"{te}.0.weight"], w[f"{te}.0.bias"])
        time = functional.linear(functional.silu(time), w[f"{te}.2.weight"], w[f"{te}.2.bias"])
        h = h + time[:, :, None, None]
        for i in range(3):
            block = f"{name}.{i}"
            if f"{block}.ln.weight" not in UNUSED:
                ln = w[f"{block}.ln.weight"]
                h = functional.layer_norm(h, ln.shape, ln, w[f"{block}.ln.bias"])
            for conv in (f"{block}.conv1", f"{block}.conv2"):
                h = functional.conv2d(h, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1)
                h = functional.silu(h)
        return h

    def down(name, h, stride, padding):
        return functional.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    def up(name, h, stride, padding):
        return functional.conv_transpose2d(
            h, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding
        )

    def forward(x, t):
        emb = w["time_embed.weight"][t]
        out_1 = stage("b1", x, emb)
        out_2 = stage("b2", down("down1", out_1, 2, 1), emb)
        out_3 = stage("b3", down("down2", out_2, 2, 1), emb)
        h = down("down3.2", functional.silu(down("down3.0", out_3, 1, 0)), 2, 1)
        h = stage("b_mid", h, emb)
        h = up("up1.2", functional.silu(up("up1.0", h, 2, 1)), 1, 0)
        h = stage("b4", torch.cat([out_3, h], 1), emb)
        h = stage("b5", torch.cat([out_2, up("up2", h, 2, 1)], 1), emb)
        h = stage("b_out", torch.cat([out_1, up("up3", h, 2, 1)], 1), emb)
        return functional.conv2d(h, w["conv_out.weight"], w["conv_out.bias"], padding=1)

    return forward


@pytest.mark.parametrize("arrays_fn", [random_arrays, trained_arrays])
def test_the_network_is_the_authors_in_torch_to_1e_4(arrays_fn):
    torch = pytest.importorskip("torch")
    arrays, params = load(arrays_fn())
    x, t = images(), np.array([1, 1000])
    with torch.no_grad():
        there = torch_network(torch, arrays)(
            torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)), torch.from_numpy(t - 1)
        )
    expected = there.numpy().transpose(0, 2, 3, 1)
    got = np.asarray(run(params, x, jnp.asarray(t, jnp.float32)))
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
