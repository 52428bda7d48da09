"""Wrong calls of metrics."""

import numpy as np

from qdiffjax import estimates, metrics
from tests.wrong_calls import COUNT, FROM_2, FUNCTIONS, KEY, KEYS, NAN, POSITIVE, not_finite

X = np.random.default_rng(0).normal(size=(40, 3))
IMAGES = np.random.default_rng(1).normal(size=(4, 12, 12, 1))
VIDEOS = np.random.default_rng(2).normal(size=(3, 4, 2, 2, 1))
P = np.full((40, 4), 0.25)
FEW = (*not_finite(40, 3), X[:1], "x", None, X.astype(complex))
NO_IMAGES = (*not_finite(4, 12, 12, 1), IMAGES[0], IMAGES[:1], "x")
NO_PROBABILITIES = (P[0], -P, 2 * P, *not_finite(40, 4), None)
NO_VIDEOS = (VIDEOS[:, :1], VIDEOS[:, 0, 0, 0], *not_finite(3, 4, 2), None)
OF_SETS = {
    "frechet_distance": "y", "frechet_of_infinite": "y", "kernel_inception_distance": "y",
    "mean_discrepancy": "y", "precision_recall": "reference", "density_coverage": "reference",
}  # fmt: skip


def sets(name, other):
    """Rows of a distance of two sets of features."""
    distance, groups = getattr(metrics, name), (*FROM_2, 21, -1)
    return {
        f"{name}(x)": (lambda v: distance(v, X), FEW),
        f"{name}({other})": (lambda v: distance(X, v), FEW),
        f"{name}(x, y)": (lambda v: distance(v, X), (X[:, :2],)),
        f"{name}(num_groups)": (lambda v: distance(X, X + 1, num_groups=v), groups),
    }


def pairs(name):
    """Rows of a metric of pairs of images."""
    similarity = getattr(metrics, name)
    return {
        f"{name}(x)": (lambda v: similarity(v, IMAGES, data_range=2), NO_IMAGES[:2]),
        f"{name}(x_hat)": (lambda v: similarity(IMAGES, v, data_range=2), NO_IMAGES[:2]),
        f"{name}(x, y)": (lambda v: similarity(v, IMAGES, data_range=2), (IMAGES[:3],)),
        f"{name}(data_range)": (lambda v: similarity(IMAGES, IMAGES, data_range=v), POSITIVE),
    }


ROWS = {
    **{k: v for name, other in OF_SETS.items() for k, v in sets(name, other).items()},
    **{k: v for name in ("psnr", "ssim", "ms_ssim") for k, v in pairs(name).items()},
    "kernel_inception_distance(x, y)": (
        lambda v: metrics.kernel_inception_distance(X, v, paired=True), (X[:39],)),
    "precision_recall(num_neighbours)": (
        lambda v: metrics.precision_recall(X, X, num_neighbours=v), (*COUNT, 38)),
    "ssim(x)": (lambda v: metrics.ssim(v, v, data_range=2), (IMAGES[:, :10], *NO_IMAGES)),
    "ms_ssim(num_scales)": (
        lambda v: metrics.ms_ssim(IMAGES, IMAGES, data_range=2, num_scales=v), (*COUNT, 6)),
    "ms_ssim(x)": (lambda v: metrics.ms_ssim(v, v, data_range=2, num_scales=2), (IMAGES,)),
    "spectral_distance(x)": (lambda v: metrics.spectral_distance(v, IMAGES), NO_IMAGES),
    "spectral_distance(num_groups)": (
        lambda v: metrics.spectral_distance(IMAGES, IMAGES, num_groups=v), FROM_2),
    "inception_score(probabilities)": (metrics.inception_score, NO_PROBABILITIES),
    "label_flips(probabilities_hat)": (lambda v: metrics.label_flips(P, v), NO_PROBABILITIES),
    "label_flips(x, y)": (lambda v: metrics.label_flips(P, v), (P[:39],)),
    "class_agreement(labels)": (
        lambda v: metrics.class_agreement(P, v),
        (np.full(40, 4), np.full(40, -1), np.zeros(39, int), np.zeros(40), None)),
    "perceptual_distance(features_hat)": (
        lambda v: metrics.perceptual_distance([IMAGES], v), ([], [IMAGES, IMAGES])),
    "perceptual_distance(heads)": (
        lambda v: metrics.perceptual_distance([IMAGES], [IMAGES], v),
        ([], [np.ones(2)], [np.array([NAN])])),
    "condition_agreement(conditions)": (
        lambda v: metrics.condition_agreement(X, v), (np.zeros((40, 3)), *FEW)),
    "flicker(videos)": (metrics.flicker, NO_VIDEOS),
    "flicker_of_errors(videos_hat)": (
        lambda v: metrics.flicker_of_errors(VIDEOS, v), (VIDEOS[:2], *NO_VIDEOS)),
    "temporal_consistency(features)": (
        metrics.temporal_consistency, (np.zeros((3, 4, 2)), *NO_VIDEOS)),
    "holm(p_values)": (metrics.holm, ([1.1], [-0.1], [NAN], None, "x")),
    "wilcoxon_p(differences)": (metrics.wilcoxon_p, (np.array([NAN]), X, None)),
    "streamed(num_groups)": (lambda v: metrics.streamed([X], v), COUNT),
    "streamed(batches)": (lambda v: metrics.streamed(v, 2), ([], [X[:1]], [X[0, 0]])),
    "merged(parts)": (
        metrics.merged, ([], [metrics.moments(X), metrics.moments(X[:, :2])])),
    "noise_floor(metric_fn)": (lambda v: metrics.noise_floor(v, X, X), FUNCTIONS),
    "jackknife(stat_fn)": (lambda v: estimates.jackknife(v, [1, 2]), FUNCTIONS),
    "jackknife(groups)": (lambda v: estimates.jackknife(np.mean, v), ([], [1])),
    "random_convolutions(num_features)": (
        lambda v: metrics.random_convolutions((8, 8, 1), num_features=v), COUNT),
    "compare(key)": (lambda v: metrics.compare(X, X, key=v), KEYS),
    "compare(float samples)": (lambda v: metrics.compare(v, X, key=KEY), FEW),
    "compare(data_range)": (lambda v: metrics.compare(X, X, key=KEY, data_range=v), POSITIVE),
    "compare(features_fn)": (
        lambda v: metrics.compare(X, X, key=KEY, features_fn=v), FUNCTIONS[1:]),
    "side_by_side(comparisons)": (metrics.side_by_side, ({},)),
}  # fmt: skip
