"""Moments in parts are the moments of all."""

import chex
import jax
import numpy as np
import pytest

from qdiffjax import metrics, sharding

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


def test_shards_are_counted_once_each():
    """On as many devices as there are; `tests/test_devices.py` shows eight."""
    mesh = sharding.make_mesh()
    x = X[: 200 // mesh.size * mesh.size]
    found = metrics.moments(sharding.split(x, mesh))
    assert_moments(found, (len(x), x.mean(0), np.cov(x.T)))
    assert_moments(metrics.moments(sharding.replicate(X, mesh)))
    chex.assert_shape(found.mean, (5,))
    assert jax.device_count() == mesh.size
