"""Tests of paired values against the books."""

import numpy as np
from scipy import stats

from qdiffjax import metrics


def test_holm_is_that_of_the_books():
    """Holm 1979: sorted p times the number left, never falling: .01 x 4, .02 x 3, .03 x 2, .04."""
    np.testing.assert_allclose(metrics.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    assert metrics.holm([0.5, 0.6]) == [1.0, 1.0]


def test_wilcoxon_counts_signs_of_ranks():
    """Of six positive differences both tails hold 2 / 2^6 of the signs."""
    np.testing.assert_allclose(metrics.wilcoxon_p(np.arange(1.0, 7)), 2 / 64, rtol=1e-12)
    assert metrics.wilcoxon_p(np.zeros(5)) == 1
    x = np.random.default_rng(0).normal(size=30)
    assert metrics.wilcoxon_p(x) == stats.wilcoxon(x).pvalue
