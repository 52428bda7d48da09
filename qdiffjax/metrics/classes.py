"""What a classifier says of samples: inception score, flips of labels, agreement of classes."""

import numpy as np

from qdiffjax._checks import require
from qdiffjax.estimates import jackknife
from qdiffjax.metrics.records import (
    NUM_GROUPS,
    SIZE_N,
    Metric,
    alike,
    grouped,
    metric,
    numbers,
    proportion,
)

TOLERANCE = 1e-3  # of probabilities that sum to one in float16


def inception_score(probabilities, *, num_groups: int = NUM_GROUPS) -> Metric:
    """Return exp(E KL(p(class | x) || p(class))), from 1 to the number of classes.

    Salimans et al. 2016, section 4, over all samples and not by splits. The value leans
    downwards by O(1 / N); the interval is for its expectation at this size. "Inception score" is
    that of Inception-v3's classes.

    Args:
      probabilities: of each class for each sample [num, classes].
      num_groups: that the jackknife leaves out in turn.
    """
    p = check_probabilities("probabilities", probabilities)

    def score(groups) -> float:
        own = np.concatenate([group for (group,) in groups])
        return float(np.exp(np.mean(_entropy(own.mean(0)) - _entropy(own))))

    return metric(jackknife(score, grouped(num_groups, p)), len(p), SIZE_N)


def label_flips(probabilities, probabilities_hat) -> Metric:
    """Return the share of pairs whose most probable class differs; ties go to the first class.

    Args:
      probabilities: of full-precision samples [num, classes].
      probabilities_hat: of quantized ones on the same noise [num, classes].
    """
    p = check_probabilities("probabilities", probabilities)
    q = check_probabilities("probabilities_hat", probabilities_hat)
    alike(p, q, paired=True)
    return proportion(p.argmax(1) != q.argmax(1))


def class_agreement(probabilities, labels) -> Metric:
    """Return the share of samples whose most probable class is the one they were drawn for.

    Args:
      probabilities: of the samples [num, classes].
      labels: the conditions, integers [num].
    """
    p, labels = check_probabilities("probabilities", probabilities), np.asarray(labels)
    require(labels.shape == p.shape[:1] and labels.dtype.kind in "iu"
            and np.all((labels >= 0) & (labels < p.shape[1])), "labels",
            got=f"{labels.dtype} of shape {labels.shape}",
            expected=f"integers from 0 to {p.shape[1] - 1}, one for each sample",
            remedy="number the classes as the classifier does")  # fmt: skip
    return proportion(p.argmax(1) == labels)


def check_probabilities(what: str, p) -> np.ndarray:
    """Return probabilities [num, classes] in float64, refused if they are none.

    Raises:
      TypeError, ValueError: says what was got.
    """
    p = numbers(what, p, rank=2)
    sums = p.sum(1)
    require(np.all(p >= 0) and np.all(np.abs(sums - 1) < TOLERANCE), what,
            got=f"least {p.min():.3g}, sums of {sums.min():.3g} to {sums.max():.3g}",
            expected="probabilities, which sum to one", remedy="take the softmax of logits"
            )  # fmt: skip
    return p / sums[:, None]


def _entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
