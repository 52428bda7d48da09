"""Moments in parts are the moments of all."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from qdiffjax import metrics

RNG = np.random.default_rng(0)
X = 1e3 + RNG.normal(size=(203, 5)) @ RNG.normal(size=(5, 5))  # a mean far from zero cancels


def assert_moments(found, expected=None):
    num, mean, covariance = expected or (len(X), X.mean(0), np.cov(X.T))
    assert found.num == num
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ends", [[203], [1, 2, 203], [64, 128, 192, 203]], ids=str)
def test_streamed_moments_are_those_of_the_batch(ends):
    batches = np.split(X, ends[:-1])
    (found,) = metrics.streamed(batches)
    assert_moments(found)
    assert_moments(metrics.moments(X.reshape(203, 5, 1)))


def test_merging_is_associative_and_commutes():
    a, b, c = map(metrics.moments, np.split(X, [20, 21]))
    orders = ([a, metrics.merged([b, c])], [metrics.merged([a, b]), c], [c, a, b])
    for parts in orders:
        assert_moments(metrics.merged(parts))


def test_groups_of_a_stream_are_every_so_many_th_row():
    groups = metrics.streamed(np.split(X, [10, 11, 90]), num_groups=4)
    for g, found in enumerate(groups):
        rows = X[g::4]
        assert_moments(found, (len(rows), rows.mean(0), np.cov(rows.T)))


def test_float32_features_are_summed_in_float64():
    x = X.astype(np.float32)
    exact = np.cov(x.astype(np.float64).T)
    np.testing.assert_allclose(metrics.moments(x).covariance, exact, rtol=1e-10, atol=1e-10)
    assert np.abs(np.cov(x.T, dtype=np.float32) / exact - 1).max() > 1e-8


SHARDS = """
import jax, numpy as np
from qdiffjax import metrics, sharding
assert jax.device_count() == 8
x = 10 + np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
exact = x.astype(np.float64)
for of_mesh in ((8, 1), (4, 2)):  # the second has two copies of each part
    mesh = sharding.make_mesh(*of_mesh)
    for array in (sharding.split(x, mesh), sharding.replicate(x, mesh)):
        found = metrics.moments(array)
        assert found.num == 48, found.num
        np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-10)
        np.testing.assert_allclose(found.covariance, np.cov(exact.T), rtol=1e-10)
"""


def test_shards_on_eight_devices_are_counted_once_each():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run([sys.executable, "-c", SHARDS], cwd=Path(__file__).parents[2], env=env,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_stream_takes_the_memory_of_its_groups_alone():
    """Of 64 features and 5 groups 5 x 64^2 numbers; the 20 000 rows of all batches are 10 MB."""
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        metrics.streamed((rng.normal(size=(100, 64)) for _ in range(200)), num_groups=5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 5 * 64**2 * 8
