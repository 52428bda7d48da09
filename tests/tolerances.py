"""The one place where test tolerances are made."""

import numpy as np


def assert_close(actual, expected, *, factor: float = 16.0, scale: float | None = None):
    """Assert |actual - expected| <= factor * eps(dtype) * sqrt(n) * scale, elementwise.

    `eps` is that of the coarser dtype of the two, n the number of elements, and `scale` the
    magnitude of the numbers compared (default: the largest |expected|, at least 1e-300).
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape} differ"
    floats = [a.dtype for a in (actual, expected) if np.issubdtype(a.dtype, np.floating)]
    eps = max([np.finfo(d).eps for d in floats], default=np.finfo(np.float64).eps)
    if scale is None:
        scale = max(float(np.max(np.abs(expected), initial=0.0)), 1e-300)
    tolerance = factor * float(eps) * np.sqrt(max(actual.size, 1)) * scale
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance)
