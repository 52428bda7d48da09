"""Tests of values that come in pairs, on common noise; intervals: `estimates.bootstrap`."""

import numpy as np

from qdiffjax._checks import check_numbers, require
from qdiffjax.metrics.records import numbers


def wilcoxon_p(differences) -> float:
    """Return Wilcoxon's two-sided p of paired differences [num]; 1 where all are zero.

    The signed-rank test (Wilcoxon 1945) of differences that are symmetric around zero. Of positive
    values, such as errors, take the differences of their logarithms.
    """
    from scipy import stats

    differences = numbers("differences", differences, rank=1, least=1)
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm(p_values) -> list[float]:
    """Return p values adjusted for all of them being looked at; Holm 1979.

    max over those before it of (m - rank) p, at most 1.
    """
    check_numbers("p_values", p_values, least_rank=1)
    values = np.asarray(p_values, np.float64)
    require(np.all((values >= 0) & (values <= 1)), "p_values", got=p_values,
            expected="numbers from 0 to 1", remedy="pass probabilities")  # fmt: skip
    order, num = np.argsort(values), len(values)
    adjusted = np.maximum.accumulate((num - np.arange(num)) * values[order])
    out = np.empty(num)
    out[order] = np.minimum(adjusted, 1)
    return out.tolist()
