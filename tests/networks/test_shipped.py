"""The networks in the repository: they load, fit their descriptions, and were trained."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from qdiffjax.diffusion import gaussian
from qdiffjax.networks import data, denoisers, made
from qdiffjax.networks.classifiers import load_classifier
from qdiffjax.sites import list_sites
from qdiffjax.sites.naming import parameter_names
from tests.tolerances import assert_digits
from tests.worlds import normal32, quick_jit

MIXTURE = "mixture_mlp"
LAW = made.mixture()
NAMES = sorted(path.parent.name for path in denoisers.SHIPPED.glob("*/config.json"))


def test_there_are_networks_of_every_kind():
    networks = [denoisers.load_config(denoisers.SHIPPED / name).network for name in NAMES]
    assert networks.count("unet") >= 2
    assert {"dit", "video", "mlp"} <= set(networks)
    assert any((denoisers.SHIPPED / name / "autoencoder").is_dir() for name in NAMES)


@pytest.mark.parametrize(
    "before", ["", "experiments/checkpoints/", "/gone/experiments/checkpoints/"]
)
def test_a_shipped_checkpoint_is_found_by_name_and_where_it_once_was(before):
    for name in (*NAMES, "fashion_latent/autoencoder"):
        assert denoisers.find_checkpoint(before + name) == denoisers.SHIPPED / name
    with pytest.raises(FileNotFoundError, match="expected a folder or one of: cifar_unet, "):
        denoisers.find_checkpoint(before + "fashion")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_of_pure_noise_a_trained_network_says_that_it_is_noise(name):
    """alpha_T is .006, so the optimum E[eps | x_T] is x_T up to about that."""
    denoiser = denoisers.load(denoisers.SHIPPED / name)
    x = jax.random.normal(jax.random.key(0), (4, *denoiser.config.shape), jnp.float32)
    eps = quick_jit(denoiser.eps_fn)(denoiser.params, x, jnp.float32(1000))
    assert float(jnp.mean((eps - x) ** 2)) < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_small_and_shows_its_command_curve_and_samples(name):
    folder = denoisers.SHIPPED / name
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6
    trained = json.loads((folder / "config.json").read_text())["trained"]
    assert trained["command"].startswith("python -m experiments.train ")
    config = denoisers.load_config(folder)
    if (
        config.prediction == "eps" and name != MIXTURE
    ):  # of others most of the target nobody can tell
        with np.load(folder / "loss.npz") as curve:
            assert curve["loss"][-1] < 0.2 * curve["loss"][0]
    assert (folder / "samples.png").is_file()
    assert (folder / "loss.png").is_file()
    for note in folder.rglob("commit_success.txt"):
        assert "/" not in note.read_text()


def test_every_shipped_checkpoint_has_sums():
    folders = [path.parent for path in denoisers.SHIPPED.rglob("config.json")]
    assert len(folders) > len(NAMES)
    assert all((folder / "SHA256SUMS").is_file() for folder in folders)


def test_the_autoencoder_gives_back_what_another_network_drew():
    """Garments of the transformer's grid, ten a row, every pixel drawn twice each way."""
    grid = plt.imread(denoisers.SHIPPED / "fashion_dit" / "samples.png")[::2, ::2, 0]
    x = grid.reshape(10, 28, 10, 28).transpose(0, 2, 1, 3).reshape(100, 28, 28, 1) * 2 - 1
    codec = denoisers.load(denoisers.SHIPPED / "fashion_latent").codec
    back = quick_jit(lambda x: codec.decode(codec.encode(x)))(jnp.asarray(x[:20], jnp.float32))
    assert float(jnp.mean((back - x[:20]) ** 2)) < 0.1 * np.var(x[:20])


def nearest_digits(frames):
    """Labels and columns of the digits, at any of five columns, that frames [n, 8, 12] are near."""
    digits = data.load("digits")
    all_places = np.stack([np.pad(digits.images[..., 0], [(0, 0), (0, 0), (j, 4 - j)],
                                  constant_values=-1) for j in range(5)])  # fmt: skip
    every, x = all_places.reshape(-1, 96), frames.reshape(-1, 96)
    nearest = np.argmin(np.sum(every**2, 1) - 2 * x @ every.T, axis=1)
    columns, which = np.divmod(nearest, len(digits.images))
    return digits.labels[which], columns


def test_the_videos_are_of_digits_that_move_as_the_docs_say():
    """Six frames a video, then a line, a class a column, every pixel drawn twice each way."""
    grid = plt.imread(denoisers.SHIPPED / "digits_video" / "samples.png")[::2, ::2, 0] * 2 - 1
    videos = grid.reshape(10, 9, 10, 73)[:, :8, :, :72].reshape(10, 8, 10, 6, 12)
    videos = videos.transpose(0, 2, 3, 1, 4)  # row, class, frame, height, width
    labels, columns = (a.reshape(10, 10, 6) for a in nearest_digits(videos))
    own = np.mean(labels == np.arange(10)[None, :, None])
    by_one = np.mean(np.abs(np.diff(columns, axis=2)) == 1)
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    said = re.search(r"(\d+) % of the 600 frames\s.*\s(\d+) % of the steps", page, re.S)
    for value, printed, least in zip((own, by_one), said.groups(), (0.9, 0.7), strict=True):
        assert_digits(100 * value, printed)
        assert value > least


def test_the_colour_network_draws_what_a_classifier_calls_by_name_as_the_docs_say():
    """Ten images a row, a class a column, every pixel drawn twice each way."""
    folder = denoisers.SHIPPED / "cifar_unet"
    grid = plt.imread(folder / "samples.png")[::2, ::2, :3] * 2 - 1
    x = grid.reshape(10, 16, 10, 16, 3).transpose(0, 2, 1, 3, 4).reshape(100, 16, 16, 3)
    p = load_classifier("cifar").probabilities_fn(jnp.asarray(x, jnp.float32))
    right = np.argmax(p, axis=1) == np.arange(100) % 10
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    (said,) = re.findall(r"(\d+) of the 100\s+below", page)
    assert int(said) == right.sum()
    assert right.mean() > 0.5  # 0.1 by chance


@pytest.mark.parametrize("name", NAMES)
def test_the_sites_of_a_shipped_network_are_its_kernels_and_two_products_for_each_attention(name):
    denoiser = denoisers.load(denoisers.SHIPPED / name)
    x = jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32)
    sites = list_sites(denoiser.eps_fn, denoiser.params, x, jax.ShapeDtypeStruct((), jnp.float32))
    leaves = zip(parameter_names(denoiser.params), jax.tree.leaves(denoiser.params), strict=True)
    kernels = {name: leaf.size for name, leaf in leaves if "kernel" in name}
    weighted = [s for s in sites if s.weight is not None]
    assert {s.name: s.parameters for s in weighted} == kernels
    assert all(s.weight_path == s.name and s.weight == 1 for s in weighted)
    folders = [path.removesuffix("/query/kernel") for path in kernels if "/query/" in path]
    products = [f"{folder}/dot_{i}" for folder in folders for i in range(2)]
    rest = [s.name for s in sites if s.weight is None]
    assert sorted(rest) == sorted(["input", "output", *products])
    assert len(sites) == len(kernels) + len(rest)
    assert not any(s.is_constant for s in sites)
    assert {s.dtype for s in sites} == {"float32"}
    assert sites.opaque == ()


def noisy_points(schedule, t, num):
    """Points of the mixture at times t [] or [num], in float32, and their noise."""
    x_0 = gaussian.sample_mixture(jax.random.key(1), LAW, num).astype(jnp.float32)
    level, eps = schedule(t), normal32(2, num, 2)
    return jnp.atleast_1d(level.alpha)[:, None] * x_0 + jnp.atleast_1d(level.sigma)[
        :, None
    ] * eps, eps


def test_the_network_of_a_mixture_is_as_near_to_the_optimal_eps_as_the_docs_say():
    denoiser = denoisers.load(MIXTURE)
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    lines = re.findall(r"^\| (\d+) \| (0\.\d+) \| ([\d.]+) \|$", page, re.M)
    assert [int(t) for t, *_ in lines] == [1, 10, 100, 200, 400, 700, 1000]
    optimal_fn = quick_jit(gaussian.eps_fn_for(denoiser.schedule))
    eps_fn = quick_jit(denoiser.eps_fn)
    for time, distance, size in lines:
        t = jnp.float32(time)
        x, _ = noisy_points(denoiser.schedule, t, 4096)
        optimum = optimal_fn(LAW, x, t)
        apart = np.sqrt(np.mean((eps_fn(denoiser.params, x, t) - optimum) ** 2))
        assert_digits(apart, distance)
        assert_digits(np.sqrt(np.mean(optimum**2)), size)
        assert apart < 0.03


def test_the_network_of_a_mixture_has_learned_what_there_is_to_learn():
    """No network's loss is below that of E[eps | x_t], E|eps - E[eps | x_t]|^2."""
    config = denoisers.load_config(denoisers.SHIPPED / MIXTURE)
    schedule, num = denoisers.make_schedule(config), 100_000
    t = jnp.asarray(np.random.default_rng(0).integers(1, 1001, num), jnp.float32)
    x, eps = noisy_points(schedule, t, num)
    optimum = np.mean((quick_jit(gaussian.eps_fn_for(schedule))(LAW, x, t) - eps) ** 2)
    assert abs(config.trained["final_loss"] - optimum) < 0.01 * optimum
