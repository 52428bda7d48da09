"""Images pixel by pixel: PSNR, SSIM, MS-SSIM, and the distance of their spectra."""

import numpy as np

from qdiffjax._checks import check_count, check_number, require
from qdiffjax.estimates import jackknife
from qdiffjax.metrics.records import (
    NUM_GROUPS,
    SIZE_N,
    Metric,
    alike,
    grouped,
    mean_metric,
    metric,
    numbers,
)

SIGMA, RADIUS = 1.5, 5  # of the Gaussian window, 11 x 11
K_1, K_2 = 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of MS-SSIM
LEAST_POWER = 1e-12  # of a pixel, so that a spectrum of zeros has a logarithm


def psnr(x, x_hat, *, data_range: float) -> Metric:
    """Return the mean over pairs of 10 log10(data_range^2 / mean squared error), in dB.

    Infinite if a pair is equal.

    Args:
      x: images [num, *shape].
      x_hat: images on the same noise [num, *shape].
      data_range: of a pixel, largest minus least; 2 for images in [-1, 1].
    """
    x, x_hat = _pairs(x, x_hat, data_range, rank=None)
    errors = np.mean(((x - x_hat) ** 2).reshape(len(x), -1), axis=1)
    with np.errstate(divide="ignore"):
        return mean_metric(10 * np.log10(data_range**2 / errors))


def ssim(x, x_hat, *, data_range: float) -> Metric:
    """Return the mean over pairs of the structural similarity; Wang et al. 2004, eq. 13.

        (2 m m' + c_1) (2 cov + c_2) / ((m^2 + m'^2 + c_1) (var + var' + c_2))

    with moments under a Gaussian window (11 x 11, sigma 1.5, no correction of the covariances),
    averaged over where the window fits in, then over channels: scikit-image's `gaussian_weights=
    True, sigma=1.5, use_sample_covariance=False`.

    Args:
      x, x_hat: images [num, height, width, channels] of at least 11 x 11.
      data_range: as in `psnr`.
    """
    x, x_hat = _pairs(x, x_hat, data_range, rank=4)
    _check_sides(x, 1)
    return mean_metric(_mean_similarity(x, x_hat, data_range))


def ms_ssim(x, x_hat, *, data_range: float, num_scales: int | None = None) -> Metric:
    """Return the mean over pairs of the multi-scale structural similarity; Wang et al. 2003, eq. 7.

    The product over scales of mean contrast and structure, with luminance at the last one, to the
    powers SCALES, the first `num_scales` of which are made to sum to one; each scale halves the
    images by means over 2 x 2. Means below zero, which have no such power, count as zero.

    Args:
      x, x_hat: images [num, height, width, channels], 11 x 11 at least at the last scale, so of 176
        for all five.
      data_range: as in `psnr`.
      num_scales: 1 to 5; None takes as many as fit.
    """
    x, x_hat = _pairs(x, x_hat, data_range, rank=4)
    num = max(fitting_scales(x.shape), 1) if num_scales is None else num_scales
    check_count("num_scales", num, most=len(SCALES))
    _check_sides(x, 2 ** (num - 1))
    powers = np.array(SCALES[:num]) / sum(SCALES[:num])
    product = np.ones((len(x), x.shape[3]))
    for scale, power in enumerate(powers):
        if scale:
            x, x_hat = _halved(x), _halved(x_hat)
        luminance, structure = _similarity(x, x_hat, data_range)
        terms = luminance * structure if scale == num - 1 else structure
        product *= np.maximum(terms.mean((1, 2)), 0) ** power
    return mean_metric(product.mean(1))


def fitting_scales(shape: tuple[int, ...]) -> int:
    """Return the number of scales of MS-SSIM for images [num, height, width, channels], 0 to 5."""
    side = min(shape[1:3])
    return sum(side >> scale > 2 * RADIUS for scale in range(len(SCALES)))


def spectral_distance(x, y, *, num_groups: int = NUM_GROUPS) -> Metric:
    """Return how far apart the spectra of two sets of images are, in dB.

        root mean square over radii of 10 E log10 P_x(radius) - 10 E log10 P_y(radius)

    with P the power of an image's Fourier transform averaged over frequencies of one rounded radius
    and over channels (Durall et al. 2020, eq. 3), in cycles up to half the shorter side. The value
    leans upwards by O(1 / N) in its square; the interval is for its expectation at this size.

    Args:
      x: images [num, height, width, channels].
      y: images [m, height, width, channels].
      num_groups: that the jackknife leaves out in turn.
    """
    x, y = numbers("x", x, rank=4), numbers("y", y, rank=4)
    alike(x, y, paired=False)
    groups = grouped(num_groups, log_spectra(x), log_spectra(y))

    def distance(kept) -> float:
        ours, theirs = (np.concatenate(side).mean(0) for side in zip(*kept, strict=True))
        return float(np.sqrt(np.mean((ours - theirs) ** 2)))

    return metric(jackknife(distance, groups), min(len(x), len(y)), SIZE_N)


def log_spectra(x) -> np.ndarray:
    """Return the radially averaged power of images in dB [num, radii].

    Args:
      x: images [num, height, width, channels]; radii are 0 to half the shorter side.
    """
    height, width = x.shape[1:3]
    down, right = np.fft.fftfreq(height, 1 / height), np.fft.fftfreq(width, 1 / width)
    radii = np.rint(np.hypot(down[:, None], right[None])).astype(int).ravel()
    num = min(height, width) // 2 + 1
    power = np.mean(np.abs(np.fft.fft2(x, axes=(1, 2))) ** 2, axis=3) / (height * width)
    power = power.reshape(len(x), -1)
    rings = np.stack([power[:, radii == r].mean(1) for r in range(num)], axis=1)
    return 10 * np.log10(rings + LEAST_POWER)


def _pairs(x, x_hat, data_range: float, rank: int | None) -> tuple[np.ndarray, np.ndarray]:
    check_number("data_range", data_range, above=0)
    x, x_hat = numbers("x", x, rank=rank), numbers("x_hat", x_hat, rank=rank)
    alike(x, x_hat, paired=True)
    return x, x_hat


def _check_sides(x: np.ndarray, shrinking: int) -> None:
    least = (2 * RADIUS + 1) * shrinking
    require(min(x.shape[1:3]) >= least, "x", got=f"images of {x.shape[1]} x {x.shape[2]}",
            expected=f"at least {least} x {least}",
            remedy="take fewer scales, or enlarge them")  # fmt: skip


def _mean_similarity(x, x_hat, data_range: float) -> np.ndarray:
    luminance, structure = _similarity(x, x_hat, data_range)
    return (luminance * structure).mean((1, 2, 3))


def _similarity(x, y, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Return luminance, and contrast times structure, where the window fits in."""
    c_1, c_2 = (K_1 * data_range) ** 2, (K_2 * data_range) ** 2
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    var_x, var_y = _smoothed(x * x) - mean_x**2, _smoothed(y * y) - mean_y**2
    cov = _smoothed(x * y) - mean_x * mean_y
    return ((2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1),
            (2 * cov + c_2) / (var_x + var_y + c_2))  # fmt: skip


def _smoothed(x: np.ndarray) -> np.ndarray:
    """Average images [num, h, w, c] under the window: [num, h - 10, w - 10, c]."""
    window = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    window /= window.sum()
    for axis in (1, 2):
        views = np.lib.stride_tricks.sliding_window_view(x, len(window), axis=axis)
        x = views @ window
    return x


def _halved(x: np.ndarray) -> np.ndarray:
    """Average images over 2 x 2; a last odd row or column is left out."""
    height, width = (n // 2 for n in x.shape[1:3])
    cut = x[:, : 2 * height, : 2 * width]
    return cut.reshape(len(x), height, 2, width, 2, -1).mean((2, 4))
