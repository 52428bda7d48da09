import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, effective_bits


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (4, True, True, (-7, 7)),
        (4, True, False, (-8, 7)),
        (4, False, True, (0, 15)),
        (2, True, True, (-1, 1)),
        (2, True, False, (-2, 1)),
        (8, True, True, (-127, 127)),
        (16, False, True, (0, 65535)),
        (1, True, True, (-1, 1)),
        (1, True, False, (-1, 1)),
        (1, False, True, (0, 1)),
    ],
)
def test_codes_run_from_qmin_to_qmax(bits, signed, narrow, expected):
    format = IntFormat(bits, signed=signed, narrow=narrow)
    assert (format.qmin, format.qmax) == expected
    assert isinstance(format.qmin, int)
    assert isinstance(format.qmax, int)
    info = np.iinfo(format.storage_dtype)
    assert info.min <= expected[0] <= expected[1] <= info.max


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_traced_code_range_equals_static(signed, narrow):
    def ends(bits):
        format = IntFormat(bits, signed=signed, narrow=narrow)
        return format.qmin, format.qmax

    low, high = jax.jit(jax.vmap(ends))(jnp.arange(2, 17))
    assert low.dtype == high.dtype == jnp.float32
    expected = np.array([ends(b) for b in range(2, 17)], np.float64)
    np.testing.assert_array_equal(np.stack([low, high], -1), expected)


def test_static_format_is_hashable_and_equal_by_value():
    assert hash(IntFormat(np.int64(4))) == hash(IntFormat(4))
    assert IntFormat(4) == IntFormat(4) != IntFormat(4, narrow=False)
    assert dataclasses.is_dataclass(IntFormat)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_width_outside_1_to_16_is_refused(bits):
    with pytest.raises(ValueError, match=rf"got {bits}, expected 1\.\.16"):
        IntFormat(bits)


def test_concrete_array_width_outside_2_to_16_is_refused():
    with pytest.raises(ValueError, match=r"expected 2\.\.16"):
        IntFormat(jnp.array([2, 17]))
    with pytest.raises(ValueError, match="one bit must be a Python int"):
        IntFormat(jnp.array(1))


@pytest.mark.parametrize("bits", [4.0, True, "4", None])
def test_width_that_is_not_an_integer_is_refused(bits):
    with pytest.raises(TypeError, match="expected an int or an integer array"):
        IntFormat(bits)


def test_overhead_of_scales_is_shared_by_the_group():
    four = IntFormat(4)
    assert effective_bits(four, group_size=16, scale_bits=8) == 4.5
    assert effective_bits(four, group_size=64, scale_bits=16) == 4.25
    assert effective_bits(four, group_size=128, scale_bits=16, zero_point_bits=4) == 4.15625
    with pytest.raises(ValueError, match="group_size: got 0"):
        effective_bits(four, group_size=0)
