"""Precision, recall, density and coverage against loops, and their means between equal laws."""

import math

import numpy as np
import pytest

from qdiffjax import metrics
from qdiffjax.metrics import manifolds

RNG = np.random.default_rng(0)
X, REFERENCE = RNG.normal(size=(30, 2)) * 0.7, RNG.normal(size=(42, 2))


def radius(points, i, k):
    """Distance of point i to its k-th neighbour among the others."""
    return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]


def inside(x, points, k):
    """Which ball of which point holds which x [x, points], by loops."""
    return np.array([[np.linalg.norm(a - p) <= radius(points, i, k) for i, p in enumerate(points)]
                     for a in x])  # fmt: skip


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [1024, 7], ids=["at once", "by rows"])
def test_all_four_are_what_loops_count(k, rows, monkeypatch):
    monkeypatch.setattr(manifolds, "ROWS", rows)
    in_reference, in_x = inside(X, REFERENCE, k), inside(REFERENCE, X, k)
    both = metrics.precision_recall(X, REFERENCE, num_neighbours=k, num_groups=5)
    assert both.precision.value == np.mean(in_reference.any(1))
    assert both.recall.value == np.mean(in_x.any(1))
    both = metrics.density_coverage(X, REFERENCE, num_neighbours=k, num_groups=5)
    np.testing.assert_allclose(both.density.value, in_reference.sum() / (k * len(X)), rtol=1e-15)
    assert both.coverage.value == np.mean(in_reference.any(0))
    assert both.coverage.num_samples == 30


@pytest.mark.parametrize("num_groups", [2, 3, 10])
def test_without_a_group_they_are_those_of_the_rest(num_groups, monkeypatch):
    """Neighbours of a point may all be in the group that is left out."""
    monkeypatch.setattr(manifolds, "ROWS", 7)
    rows = np.arange(len(REFERENCE))
    near = REFERENCE.copy()
    near[:, 0] += 50 * (rows % num_groups)  # groups far apart
    found = manifolds._density_coverage(X, near, 3, num_groups)
    assert len(found) == num_groups + 1
    for group, own in zip(range(num_groups), found[1:], strict=True):
        kept = (X[np.arange(len(X)) % num_groups != group], near[rows % num_groups != group])
        held = inside(*kept, 3)
        expected = [held.sum() / (3 * len(kept[0])), np.mean(held.any(0))]
        np.testing.assert_allclose(own, expected, rtol=1e-15)


def test_between_equal_laws_density_is_one_and_coverage_as_naeem_says():
    """Naeem et al. 2020, section 3.3: 1 - (M - 1) ... (M - k) / ((M + N - 1) ... (M + N - k))."""
    rng, k, num, m, found = np.random.default_rng(1), 3, 20, 30, []
    for _ in range(1500):
        x, reference = rng.normal(size=(num, 2)), rng.normal(size=(m, 2))
        found.append(manifolds._density_coverage(x, reference, k, 0)[0])
    coverage = 1 - math.prod((m - i) / (m + num - i) for i in range(1, k + 1))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    np.testing.assert_array_less(np.abs(np.mean(found, axis=0) - [1, coverage]), 3 * error)
    assert error.max() < 0.01


def test_a_law_that_misses_a_mode_is_precise_and_does_not_cover():
    rng = np.random.default_rng(2)
    reference = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 50])
    x = rng.normal(size=(200, 2))
    precise, dense = metrics.precision_recall(x, reference), metrics.density_coverage(x, reference)
    assert precise.precision.value > 0.9
    assert precise.recall.value < 0.6
    assert dense.coverage.value <= 0.5
