"""What a classifier says, against cases worked by hand."""

import numpy as np
import pytest
from scipy import stats

from qdiffjax import metrics

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(4), size=40)


def test_the_inception_score_of_sure_and_balanced_classes_is_their_number():
    p = np.tile(np.eye(5), (8, 1))
    np.testing.assert_allclose(metrics.inception_score(p, num_groups=2).value, 5, rtol=1e-12)
    unsure = np.full((40, 5), 0.2)
    np.testing.assert_allclose(metrics.inception_score(unsure, num_groups=2).value, 1, rtol=1e-12)


def test_the_inception_score_is_scipys_divergence_in_the_mean():
    expected = np.exp(np.mean([stats.entropy(p, P.mean(0)) for p in P]))
    np.testing.assert_allclose(metrics.inception_score(P, num_groups=4).value, expected, rtol=1e-10)


def test_flips_are_counted_with_wilsons_interval():
    q = P.copy()
    q[:10] = P[:10, ::-1]
    found = metrics.label_flips(P, q)
    expected = stats.binomtest(10, 40).proportion_ci(method="wilson")
    np.testing.assert_allclose([found.value, found.low, found.high],
                               [0.25, expected.low, expected.high], rtol=1e-6)  # fmt: skip


def test_agreement_is_the_share_of_samples_of_the_class_they_were_drawn_for():
    labels = P.argmax(1)
    labels[:4] = (labels[:4] + 1) % 4
    assert metrics.class_agreement(P, labels).value == 0.9


def test_wilsons_interval_covers_as_it_does_in_the_books():
    """Exact coverage over all counts; within 0.93 to 0.98 for 100 at these shares."""
    hits = [metrics.label_flips(*_with_flips(k, 100)) for k in range(101)]
    for share in (0.1, 0.3, 0.5):
        covered = sum(stats.binom.pmf(k, 100, share) for k, m in enumerate(hits)
                      if m.low <= share <= m.high)  # fmt: skip
        assert 0.93 < covered < 0.98


def _with_flips(num, of):
    p = np.tile([1.0, 0.0], (of, 1))
    return p, np.where(np.arange(of)[:, None] < num, p[:, ::-1], p)


@pytest.mark.parametrize("p", [P - 0.1, 2 * P, P[0], np.full((4, 2), np.nan)], ids=str)
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"got .* expected .*; "):
        metrics.label_flips(p, p)
