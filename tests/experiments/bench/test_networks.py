"""The benchmark of networks: its twin in torch is the same function, what is missing is said."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import convolutions, networks, torch_twin
from experiments.harness import command, store, timing
from qdiffjax.networks.models.unet import UNet
from tests import worlds
from tests.worlds import normal32, quick_jit, random_params

pytestmark = pytest.mark.usefixtures("users_defaults")


@pytest.mark.parametrize(("patch", "shape"), [(1, (2, 7, 5, 3)), (2, (1, 8, 12, 2))])
def test_the_twin_in_torch_is_the_unet(patch, shape):
    torch = pytest.importorskip("torch")
    arguments = {"channels": (8, 16), "num_blocks": 2, "attention": (True, False), "patch": patch}
    net, x, t = UNet(**arguments), normal32(0, *shape), jnp.float32(321)
    params = random_params(net, x, t, scale=0.2)
    expected = quick_jit(net.apply)(params, x, t)
    there = torch_twin.unet(params, **arguments)(
        torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)), torch.tensor([321.0])
    )
    got = there.numpy().transpose(0, 2, 3, 1)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_a_run_has_a_row_and_a_column_for_each_contender_and_says_who_is_missing(tmp_path, capsys):
    checkpoint = worlds.save_tiny(tmp_path / "model")
    argv = ["--checkpoint", str(checkpoint), "--batch", "2", "--num-steps", "2"]
    argv += ["--num-rounds", "3", "--output", str(tmp_path / "out")]
    assert command.main(networks.EXPERIMENT, argv) == 0
    config, arrays, rows = store.load(tmp_path / "out")
    measured = [row for row in rows if "missing" not in row]
    assert [row["name"] for row in measured][:2] == [networks.OURS, networks.SCAN]
    assert arrays["seconds"].shape == (3, len(measured))
    assert measured[0]["over_ours"] == 1.0
    assert config["batch"] == 2
    printed = capsys.readouterr().out
    for row in rows[len(measured) :]:
        assert f"{row['name']}: {row['missing']}" in printed


def test_a_network_of_another_kind_is_refused(tmp_path, capsys):
    argv = ["--checkpoint", "fashion_dit", "--output", str(tmp_path)]
    assert command.main(networks.EXPERIMENT, argv) == 2
    assert "expected an unconditional UNet" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 3])
def test_every_way_to_convolve_is_the_convolution(size):
    x, kernel = normal32(0, 4, 5, 5, 3), normal32(1, size, size, 3, 2)
    ways = {name: fn for name, (fn, options) in convolutions.WAYS.items() if not options}
    found = jax.jit(lambda x, kernel: {name: fn(x, kernel) for name, fn in ways.items()})(x, kernel)
    padded = np.pad(np.float64(x), ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    expected = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
    for name, out in found.items():
        # bfloat16 rounds each operand to 8 bits.
        tolerance = 2**-7 if name == "bfloat16" else 1e-5
        assert np.abs(out - expected).max() <= tolerance * np.abs(expected).max(), name


def test_codes_convolve_to_within_their_steps():
    x, kernel = normal32(0, 4, 5, 5, 3), normal32(1, 3, 3, 3, 2)
    w = convolutions.coded(kernel)
    exact = convolutions.convolve(x, kernel)
    found = {name: fn(x, w) for name, fn in convolutions.CODED.items()}
    np.testing.assert_array_equal(found["W8A8 static"], found["W8A8 static, XLA's"])
    for name, y in found.items():
        # 27 products with errors of half a step of x (5 / 127) and of w (max / 127), uniform.
        error = 27**0.5 * (5 / 127 + np.abs(kernel).max() / 127) / 12**0.5
        assert np.sqrt(np.mean((y - exact) ** 2)) < 2 * error, name


def test_a_convolution_has_a_row_for_each_way():
    config = convolutions.Config(num_rounds=2)
    arrays, rows = convolutions.run(config, shapes=[(2, 4, 4, 4, 3)])
    assert arrays["seconds"].shape == arrays["cpu_seconds"].shape == (2, len(rows))
    ways = {*convolutions.WAYS, *convolutions.CODED}
    assert ways <= {row["way"] for row in rows}
    assert rows[0]["over_xla"] == 1.0


def test_waiting_takes_wall_time_and_no_cpu_time_and_working_takes_both():
    def work():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    wall, cpu = timing.interleave({"wait": lambda: time.sleep(0.02), "work": work}, 3)
    assert wall.shape == cpu.shape == (3, 2)
    assert wall.min() >= 0.02
    assert cpu[:, 0].max() < 0.02 <= cpu[:, 1].min()
