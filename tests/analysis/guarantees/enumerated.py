"""Every outcome of a few Bernoulli scores, with its probability: exact laws without sampling."""

import itertools

import numpy as np


def sequences(num):
    """All scores in {0, 1}: [num, 2^num]."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=num))).T


def chances(scores, mean):
    """Probability of each sequence [2^num] of independent scores of this mean."""
    ones = scores.sum(axis=0)
    return mean**ones * (1 - mean) ** (len(scores) - ones)


def assert_valid(p_values, weights):
    """Assert P(p <= u) <= u at every u that p takes, which are the only ones that matter."""
    for u in np.unique(p_values):
        assert weights[p_values <= u].sum() <= u * (1 + 1e-12)
