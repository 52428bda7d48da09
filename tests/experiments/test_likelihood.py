"""The experiment that reports bits per dimension, on tiny networks and images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import likelihood
from experiments.harness import command, store
from qdiffjax import diffusion
from qdiffjax.denoiser import Denoiser
from tests import worlds


@pytest.fixture
def refused(capsys):
    def run(argv):
        assert command.main(likelihood.EXPERIMENT, [str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


CONFIG = dataclasses.replace(worlds.TINY_DIT, num_classes=10)


def flags(checkpoint, output, *more):
    return ["--checkpoints", checkpoint, "--data", "digits", "--num-images", 5, "--num-steps", 4,
            "--batch", 3, "--output", output, *more]  # fmt: skip


@pytest.mark.slow
def test_a_miniature_run_writes_bits_of_every_image(tmp_path, capsys):
    folder, name = (
        tmp_path / "out",
        str(worlds.save_tiny(tmp_path / "net", CONFIG, worlds.tiny_params(CONFIG))),
    )
    assert command.main(likelihood.EXPERIMENT, [str(a) for a in flags(name, folder)]) == 0
    config, arrays, (row,) = store.load(folder)
    assert config["num_images"] == row["images"] == 5
    assert row["conditional"]
    printed = capsys.readouterr().out
    for column in ("bound", "dequantized"):
        values = arrays[f"{name}/{column}"]
        assert values.shape == (5,)
        assert row[column] == pytest.approx(values.mean(), rel=1e-5)
        error = values.std(ddof=1) / np.sqrt(5)
        assert row[f"{column}_standard_error"] == pytest.approx(error, rel=1e-5)
        assert f"{row[column]:.3f} ± {error:.3f}" in printed


def normal_fn(params, x, t):
    """Exact for pixels N(0, 1) under a process of VP: eps = sigma x."""
    return diffusion.Interpolated(diffusion.linear())(t).sigma * x


def test_both_numbers_of_a_standard_normal_are_its_code_length():
    """Under N(0, 1) every marginal is N(0, 1), and -log2 P(pixel) is known for every bin."""
    denoiser = Denoiser(normal_fn, {}, diffusion.linear(), (2, 2, 1))
    config = likelihood.Config()
    pixels = np.random.default_rng(0).integers(1, 255, (64, 2, 2, 1))
    image = jnp.asarray(pixels / 127.5 - 1, jnp.float32)
    process, _ = likelihood.subject.continuous(denoiser)
    times = jnp.asarray(likelihood.grids(process, config)[0], jnp.float32)
    fn = likelihood.bits(denoiser, config)
    found = fn({}, image, None, jax.random.key(0), times)
    bound, dequantized = (np.asarray(leaf, np.float64) for leaf in found)
    edges = np.asarray(image, np.float64)[..., None] + likelihood.BIN / 2 * np.array([-1, 1])
    exact = -np.log2(np.diff(stats.norm.cdf(edges))[..., 0]).mean((1, 2, 3))
    # The noise of one bin and that of sigma_min are all the difference, for smooth densities.
    assert np.max(np.abs(dequantized - exact)) < 0.02
    gap = bound - exact
    assert abs(gap.mean() - gap_of_a_flat_density()) < 5 * gap.std() / np.sqrt(gap.size)


def gap_of_a_flat_density():
    """Bits of E[log q(x | image) - log p(x) - log P(image | x)] + log P(image), by quadrature."""
    sigma, bin_width = 0.01, likelihood.BIN
    z = np.linspace(-6, 6, 4001)
    weight = stats.norm.pdf(z) / stats.norm.pdf(z).sum()
    edges = sigma * z[:, None] + bin_width / 2 * np.array([-1, 1])
    inside = np.diff(stats.norm.cdf(edges, scale=sigma))[:, 0]
    # A flat density cancels: P(image) / p(x) is the bin.
    log_q = stats.norm.logpdf(z) - np.log(sigma)
    return np.sum(weight * (log_q + np.log(bin_width) - np.log(inside))) / np.log(2)


def test_the_probabilities_of_all_values_of_a_pixel_sum_to_one():
    values = jnp.arange(256.0).reshape(256, 1, 1, 1) / 127.5 - 1
    for mean, std in ((-0.999, 0.01), (0.3, 0.02), (1.2, 0.1), (0.0, 3.0)):
        total = jnp.sum(jnp.exp(likelihood.log_pixels(values, mean, std)))
        np.testing.assert_allclose(total, 1.0, rtol=1e-10)


def test_a_pixel_far_from_its_mean_has_a_finite_log_probability():
    values = jnp.array([-0.9, 0.9]).reshape(2, 1, 1, 1)
    logs = likelihood.log_pixels(values.astype(jnp.float32), jnp.float32(0.0), jnp.float32(0.02))
    np.testing.assert_allclose(logs, np.full(2, stats.norm.logpdf(45.0)), rtol=0.02)


def test_images_of_another_shape_are_refused(tmp_path, refused):
    config = dataclasses.replace(worlds.TINY, shape=(6, 6, 1))
    path = worlds.save_tiny(tmp_path / "six", config)
    assert "(8, 8, 1)" in refused(flags(path, tmp_path / "out"))


def test_more_images_than_there_are_is_refused(tmp_path, refused):
    path = worlds.save_tiny(tmp_path / "net")
    assert "1797" in refused(flags(path, tmp_path / "out", "--num-images", 5000))


def test_no_data_is_refused(tmp_path, refused):
    path = worlds.save_tiny(tmp_path / "net")
    error = refused(flags(path, tmp_path / "out", "--data", tmp_path / "nowhere"))
    assert "no data at" in error


def test_levels_that_do_not_descend_are_refused(tmp_path, refused):
    path = worlds.save_tiny(tmp_path / "net")
    assert "sigma_min" in refused(flags(path, tmp_path / "out", "--sigma-min", 200))
