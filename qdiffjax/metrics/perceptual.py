"""Distances in the features of pairs: the LPIPS form, and agreement with a condition."""

from collections.abc import Sequence

import numpy as np

from qdiffjax._checks import check_numbers, require
from qdiffjax.metrics.records import Metric, alike, flat, mean_metric, numbers

TINY = 1e-10  # beside the length of a feature that is divided by it, as in Zhang's code
UNCALIBRATED = "LPIPS form, uncalibrated"
CALIBRATED = "LPIPS form"


def perceptual_distance(features, features_hat, heads: Sequence | None = None) -> Metric:
    """Return the mean over pairs of LPIPS's distance of features; survey, eq. 18.

        sum over layers l of 1 / (H_l W_l) sum over h, w of |w_l (phi_l - phi_hat_l)|^2

    with features phi of length one at every place, which the survey leaves out (Zhang et al. 2018,
    eq. 1). It is LPIPS of the networks and heads that LPIPS was calibrated with; with all heads one
    it is called uncalibrated, see `perceptual_name`.

    Args:
      features: layers of the images, each [num, height, width, channels].
      features_hat: those of the images on the same noise.
      heads: w_l [channels] of each layer; of published heads, which weigh squares, the roots.
    """
    names = [f"features[{i}]" for i in range(len(features))]
    require(len(features) == len(features_hat) > 0, "features_hat", got=len(features_hat),
            expected=f"{len(features)} layers, one at least",
            remedy="pass a list of layers for both")  # fmt: skip
    require(heads is None or len(heads) == len(features), "heads",
            got=None if heads is None else len(heads), expected=f"{len(features)}, one a layer",
            remedy="leave them out for the uncalibrated form")  # fmt: skip
    total = 0.0
    for i, name in enumerate(names):
        phi, phi_hat = (numbers(name, f[i], rank=4) for f in (features, features_hat))
        alike(phi, phi_hat, paired=True)
        gaps = _unit(phi) - _unit(phi_hat)
        if heads is not None:
            check_numbers("heads", heads[i], least_rank=1)
            require(np.shape(heads[i]) == gaps.shape[3:], "heads", got=np.shape(heads[i]),
                    expected=f"{gaps.shape[3:]} for layer {i}",
                    remedy="take those of this network")  # fmt: skip
            gaps = gaps * np.asarray(heads[i], np.float64)
        total = total + np.sum(gaps**2, axis=3).mean((1, 2))
    return mean_metric(total)


def perceptual_name(heads: Sequence | None) -> str:
    """Return what the distance of `perceptual_distance` is called."""
    return UNCALIBRATED if heads is None else CALIBRATED


def condition_agreement(embeddings, conditions) -> Metric:
    """Return the mean cosine of samples and their conditions, in an embedding with two towers.

    Called CLIP score for CLIP's (Hessel et al. 2021, without its factor 2.5 and its clip at zero).

    Args:
      embeddings: of the samples [num, dims].
      conditions: of what each was drawn for [num, dims].
    """
    x, y = flat("embeddings", embeddings), flat("conditions", conditions)
    alike(x, y, paired=True)
    return mean_metric(np.sum(directions("embeddings", x) * directions("conditions", y), axis=1))


def _unit(phi: np.ndarray) -> np.ndarray:
    return phi / (np.linalg.norm(phi, axis=3, keepdims=True) + TINY)


def directions(what: str, x: np.ndarray) -> np.ndarray:
    """Return vectors [..., dims] divided by their lengths.

    Raises:
      ValueError: one of them is zero.
    """
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    require(np.all(lengths > 0), what, got="an embedding of zeros", expected="directions",
            remedy="leave those samples out")  # fmt: skip
    return x / lengths
