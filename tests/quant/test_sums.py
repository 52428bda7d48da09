"""Rounding that keeps sums: what stays, how far elements move, and what is left as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, absmax, fake_quant, keep_sums, minmax, quantize
from tests.worlds import normal

# Shapes of x, of its scale, and of whose sums stay.
SHAPES = {
    "channels": ((40, 6), (1, 6), (1, 6)),
    "one scale": ((40, 6), (1, 1), (1, 6)),
    "groups": ((40, 6), (4, 6), (4, 6)),
    "kernel": ((3, 3, 5, 4), (1, 1, 1, 4), (1, 1, 1, 4)),
    "rows": ((6, 40), (6, 1), (6, 1)),
}


def granule_sums(x, shape):
    """Sums of the blocks of x, in NumPy."""
    split = [m for n, g in zip(x.shape, shape, strict=True) for m in (g, n // g)]
    return np.asarray(x).reshape(split).sum(tuple(range(1, 2 * x.ndim, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("calibrate_fn", "signed"), [(absmax, True), (minmax, False)])
def test_each_sum_stays_to_half_a_step_and_each_element_moves_by_less_than_a_step(
    name, calibrate_fn, signed
):
    shape, scale_shape, sum_shape = SHAPES[name]
    x, format = jnp.abs(normal(3, *shape)) + 0.3, IntFormat(4, signed=signed)
    scale, zero = calibrate_fn(x, format=format, scale_shape=scale_shape)
    y = jax.jit(lambda x: keep_sums(x, scale, zero, format=format, sum_shape=sum_shape))(x)
    steps = np.asarray(jnp.broadcast_to(_wide(scale, sum_shape), sum_shape))
    assert np.all(np.abs(granule_sums(y - x, sum_shape)) <= steps * (0.5 + 1e-9))
    nearest = fake_quant(x, scale, zero, format=format)
    if name == "channels":  # and these did not stay by themselves
        assert np.any(np.abs(granule_sums(nearest - x, sum_shape)) > steps)
    assert np.all(np.abs(y - x) < np.asarray(_wide(scale, shape)))
    np.testing.assert_allclose(fake_quant(y, scale, zero, format=format), y, rtol=1e-12)


def _wide(scale, shape):
    for axis, n in enumerate(shape):
        scale = jnp.repeat(scale, n // scale.shape[axis], axis) if scale.shape[axis] > 1 else scale
    return scale


def test_codes_are_those_of_a_worked_case():
    # Nearest rounds 0.4 four times to 0 and loses 1.6 steps: the first two round up instead.
    x = jnp.asarray([0.4, 0.4, 0.4, 0.4, 7.0])
    y = keep_sums(x, jnp.ones(1), format=IntFormat(4), sum_shape=(1,))
    np.testing.assert_array_equal(y, [1, 1, 0, 0, 7])


def test_what_nearest_keeps_and_what_is_on_the_grid_is_left_to_nearest():
    x = jnp.asarray([[0.2, -0.2, 3.0], [1.0, 2.0, -3.0]])
    y = keep_sums(x, jnp.ones((1, 1)), format=IntFormat(4), sum_shape=(2, 1))
    np.testing.assert_array_equal(y, jnp.round(x))


def test_what_saturates_does_not_draw_the_others_with_it():
    x = jnp.asarray([100.0, 0.4, -0.4])
    y = keep_sums(x, jnp.ones(1), format=IntFormat(4), sum_shape=(1,))
    np.testing.assert_array_equal(y, [7, 0, 0])


def test_bits_may_be_data_and_bfloat16_comes_back_on_the_grid():
    x = normal(5, 64, 8).astype(jnp.bfloat16)
    grid = {b: absmax(x, format=IntFormat(b), scale_shape=(1, 8))[0] for b in (3, 8)}
    keep = jax.jit(lambda x, s, b: keep_sums(x, s, format=IntFormat(b), sum_shape=(1, 8)))
    for bits, scale in grid.items():
        static = keep_sums(x, scale, format=IntFormat(bits), sum_shape=(1, 8))
        traced = keep(x, scale, jnp.int32(bits))
        codes = [quantize(v, scale, format=IntFormat(bits)).codes for v in (static, traced)]
        np.testing.assert_array_equal(*codes)
        np.testing.assert_allclose(static / scale, codes[0], atol=1e-4)
    assert keep._cache_size() == 1
