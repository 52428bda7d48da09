"""The network of vectors: each sample alone, zero at the start, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models.mlp import VectorMLP
from tests.worlds import normal32, quick_jit, random_params

NET = VectorMLP(width=8, depth=2, num_classes=3)
X, T = normal32(0, 4, 2), jnp.float32(7)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def params():
    with jax.numpy_dtype_promotion("standard"):
        return random_params(NET, X, T)


run = quick_jit(NET.apply)


def test_a_fresh_network_answers_zero():
    np.testing.assert_array_equal(run(quick_jit(NET.init)(jax.random.key(0), X, T), X, T), 0)


def test_each_sample_is_denoised_alone_at_its_own_time_and_class(params):
    times, labels = jnp.arange(1.0, 5.0, dtype=jnp.float32), jnp.arange(4)
    together = run(params, X, times, labels)
    for i in range(4):
        alone = run(params, X[i : i + 1], times[i], labels[i])
        np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-5)
    for other in (run(params, X + 1, times, labels), run(params, X, times + 1, labels),
                  run(params, X, times, (labels + 1) % 4)):  # fmt: skip
        assert np.all(np.abs(other - together).max(1) > 1e-3)


def test_samples_that_are_no_vectors_are_refused(params):
    with pytest.raises(ValueError, match=r"got x of shape \(4, 2, 1\), expected \[batch"):
        NET.apply(params, X[..., None], T)
