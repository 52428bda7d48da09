"""Images pixel by pixel, against SciPy's filters and loops."""

import numpy as np
import pytest
from scipy import ndimage

from qdiffjax import metrics

RNG = np.random.default_rng(0)
X = ndimage.gaussian_filter(RNG.normal(size=(3, 40, 36, 2)), (0, 2, 2, 0))
Y = X + 0.05 * RNG.normal(size=X.shape)


def similarity(a, b, data_range):
    """Maps of one channel as scikit-image computes them: SciPy's filter, then a cropped border.

    Returns luminance, and contrast times structure.
    """
    smooth = lambda z: ndimage.gaussian_filter(z, 1.5, truncate=3.5)  # noqa: E731
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ux, uy = smooth(a), smooth(b)
    vx, vy, vxy = smooth(a * a) - ux * ux, smooth(b * b) - uy * uy, smooth(a * b) - ux * uy
    maps = (2 * ux * uy + c_1) / (ux**2 + uy**2 + c_1), (2 * vxy + c_2) / (vx + vy + c_2)
    return [m[5:-5, 5:-5] for m in maps]


def channels(x, y):
    return [[(a[..., c], b[..., c]) for c in range(a.shape[-1])] for a, b in zip(x, y, strict=True)]


def test_psnr_is_of_each_pair():
    errors = [np.mean((a - b) ** 2) for a, b in zip(X, Y, strict=True)]
    expected = np.mean([20 * np.log10(2) - 10 * np.log10(e) for e in errors])
    np.testing.assert_allclose(metrics.psnr(X, Y, data_range=2).value, expected, rtol=1e-12)
    assert metrics.psnr(X, X, data_range=2).value == np.inf


def test_ssim_is_scikit_images_definition():
    values = [np.mean([np.mean(np.prod(similarity(a, b, 2.0), axis=0)) for a, b in pairs])
              for pairs in channels(X, Y)]  # fmt: skip
    np.testing.assert_allclose(metrics.ssim(X, Y, data_range=2).value, np.mean(values), rtol=1e-10)
    np.testing.assert_allclose(metrics.ssim(X, X, data_range=2).value, 1, rtol=1e-12)


def test_ssim_of_two_flat_images_is_their_luminance():
    a, b = np.full((2, 11, 11, 1), 0.2), np.full((2, 11, 11, 1), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(metrics.ssim(a, b, data_range=1).value, expected, rtol=1e-10)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_ms_ssim_is_the_product_over_halved_images(num):
    rng = np.random.default_rng(1)
    x = ndimage.gaussian_filter(rng.normal(size=(1, 192, 176, 1)), (0, 3, 3, 0))
    y = x + 0.05 * rng.normal(size=x.shape)
    powers = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:num])
    powers /= powers.sum()
    a, b, expected = x[0, ..., 0], y[0, ..., 0], 1.0
    for scale, power in enumerate(powers):
        luminance, structure = similarity(a, b, 2.0)
        last = scale == num - 1
        expected *= np.mean(luminance * structure if last else structure) ** power
        even = tuple(slice(n // 2 * 2) for n in a.shape)
        a, b = (sum(z[even][i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 for z in (a, b))
    found = metrics.ms_ssim(np.repeat(x, 2, 0), np.repeat(y, 2, 0), data_range=2, num_scales=num)
    np.testing.assert_allclose(found.value, expected, rtol=1e-10)


def test_ms_ssim_takes_the_scales_that_fit():
    small = RNG.normal(size=(2, 2, 28, 28, 1))
    found = metrics.ms_ssim(*small, data_range=2)
    assert found == metrics.ms_ssim(*small, data_range=2, num_scales=2)


def test_the_distance_of_spectra_of_scaled_images_is_their_gain():
    """Every radius of 3 x is 20 log10 3 dB above that of x."""
    x = RNG.normal(size=(12, 9, 8, 2))
    found = metrics.spectral_distance(3 * x, x, num_groups=3)
    np.testing.assert_allclose(found.value, 20 * np.log10(3), rtol=1e-8)


def test_the_spectrum_is_the_mean_power_on_a_ring():
    x, y = RNG.normal(size=(2, 4, 6, 6, 1))

    def spectrum(image):
        rings: dict = {}
        for u in range(-3, 3):
            for v in range(-3, 3):
                wave = np.exp(-2j * np.pi * (u * np.arange(6)[:, None] + v * np.arange(6)) / 6)
                rings.setdefault(round(np.hypot(u, v)), []).append(abs(np.sum(image * wave)) ** 2)
        return [10 * np.log10(np.mean(rings[r]) / 36) for r in range(4)]

    gap = np.mean([spectrum(a[..., 0]) for a in x], 0) - np.mean(
        [spectrum(a[..., 0]) for a in y], 0
    )
    found = metrics.spectral_distance(x, y, num_groups=2)
    np.testing.assert_allclose(found.value, np.sqrt(np.mean(gap**2)), rtol=1e-8)
