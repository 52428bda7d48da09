"""Projections of error vectors are those of the vectors, where first order is exact."""

import jax
import numpy as np
import pytest

from qdiffjax import diffusion, precision, strategies
from qdiffjax.denoiser import Denoiser
from tests.strategies import parallel
from tests.tolerances import assert_close

KEY = jax.random.key(9)


def offered(choices=("W3", "W4 mse", "W6"), steps=parallel.ONE_STEP):
    return strategies.offer(parallel.calibrated(1), steps, choices, sites=("*",))


@pytest.mark.parametrize("around", [None, [0, 1, 2, 0]], ids=["full", "around"])
def test_projections_are_of_the_vectors_where_the_sample_is_affine(around):
    noise = strategies.trial(offered({"*": ("W3", "W4 mse", "W6"), "b": ("W3", "W4 mse")}), KEY, 4)
    around = [0, 1, 1, 0] if around else None
    sketch = strategies.sketched_algebra(noise, KEY, num_probes=3, around=around)
    exact = strategies.error_algebra(noise, around)
    probes = np.asarray(jax.random.rademacher(KEY, (4, 3, 6), np.float32))
    expected = np.einsum("spi,lbsi->lbsp", probes, exact.vectors) / np.float32(np.sqrt(6))
    assert_close(sketch.vectors, expected, factor=64, scale=1.0)
    assert sketch.num_runs == 10
    assert np.all(sketch.vectors[1, 2] == 0)  # not offered there


def test_the_gram_matrix_is_that_of_the_vectors_on_average():
    """Independent signs: standard error of an entry |e| |e'| sqrt(2 / (samples probes)) at most."""
    noise = strategies.trial(offered(), KEY, 8)
    exact = strategies.error_algebra(noise)
    sketch = strategies.sketched_algebra(noise, KEY, num_probes=200)
    size = np.einsum("lala->la", exact.gram) ** 0.5
    apart = (sketch.gram - exact.gram) / (size[:, :, None, None] * size)
    assert np.sqrt(np.mean(apart**2)) < 2 * np.sqrt(2 / 1600)
    pick = [0, 1, 2, 0]
    np.testing.assert_allclose(sketch.predicted(pick), exact.predicted(pick), rtol=0.1)


@pytest.mark.parametrize(
    ("choices", "steps", "match"),
    [(("W4A4",), parallel.ONE_STEP, "activations"), (("W4 shaped",), parallel.ONE_STEP, "change"),
     (("W4",), diffusion.ddim(parallel.SCHEDULE, 2, eta=1.0), "adds noise")],
    ids=["activations", "shaped", "noise"],
)  # fmt: skip
def test_what_has_no_gradient_of_its_own_is_refused(choices, steps, match):
    noise = strategies.trial(offered(choices, steps), KEY, 2)
    with pytest.raises(ValueError, match=match):
        strategies.sketched_algebra(noise, KEY)


def test_conditions_go_with_their_samples():
    """Each sample has its own label, and a run is of two samples at a time."""
    params = {name: parallel.denoiser().params[name] for name in ("a", "b")}
    onehot = np.eye(6, dtype=np.float32)

    def net_fn(params, x, t, label):
        return np.float32(0.5) * (x @ params["a"]) + jax.numpy.asarray(onehot)[label] @ params["b"]

    labels = np.array([3, 0, 5, 1])
    denoiser = Denoiser(net_fn, params, parallel.SCHEDULE, (6,), cond=(labels,))
    calibration = precision.calibrate(denoiser, parallel.ONE_STEP, KEY, num_samples=2)
    choices = strategies.offer(calibration, parallel.ONE_STEP, ("W3", "W4"), sites=("*",))
    assert choices.sites == ("a", "b")
    noise = strategies.trial(choices, KEY, 4, 2)
    sketch = strategies.sketched_algebra(noise, KEY, num_probes=2)
    exact = strategies.error_algebra(noise)
    probes = np.asarray(jax.random.rademacher(KEY, (4, 2, 6), np.float32))
    expected = np.einsum("spi,lbsi->lbsp", probes, exact.vectors) / np.float32(np.sqrt(6))
    assert_close(sketch.vectors, expected, factor=64, scale=1.0)
    # The error of the labels' matrix is that of the row of each sample's own label.
    rounded = choices.tables["W3", False]["b"].weight - params["b"]
    rows = np.asarray(rounded)[labels]
    largest = np.unravel_index(np.argmax(np.abs(rows)), rows.shape)
    gain = exact.vectors[1, 0][largest] / rows[largest]  # of the sampler's one step
    assert_close(exact.vectors[1, 0], gain * rows, scale=1.0)
