"""Sums of products of codes are exact, whichever instructions multiply them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import kernels
from qdiffjax.kernels import chip, integers, unsigned
from qdiffjax.quant import ActivationGrid, IntFormat, quantize

RNG = np.random.default_rng(0)


def codes(*shape) -> np.ndarray:
    return RNG.integers(-128, 128, shape).astype(np.int8)


@pytest.fixture(params=[False, True], ids=["signed", "unsigned"])
def instructions(request, monkeypatch):
    monkeypatch.setattr(integers, "multiplies_unsigned", lambda: request.param)


@pytest.mark.slow
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(
    ("equation", "dims", "shapes"),
    [
        ("mk,kn->mn", (((1,), (0,)), ((), ())), ((33, 70), (70, 19))),
        ("bhqd,bhkd->bhqk", (((3,), (3,)), ((0, 1), (0, 1))), ((2, 3, 5, 8), (2, 3, 7, 8))),
        ("mgk,gkn->gmn", (((2,), (1,)), ((1,), (0,))), ((9, 4, 16), (4, 16, 5))),
        ("iaj,jib->ab", (((0, 2), (1, 0)), ((), ())), ((5, 7, 6), (6, 5, 9))),
        ("k,kn->n", (((0,), (0,)), ((), ())), ((12,), (12, 3))),
    ],
)
def test_sums_are_those_of_whole_numbers(equation, dims, shapes):
    left, right = (codes(*shape) for shape in shapes)
    expected = np.einsum(equation, left.astype(np.int64), right.astype(np.int64))
    for run in (integers.dot_general, jax.jit(integers.dot_general, static_argnums=2)):
        y = run(left, right, dims)
        assert y.dtype == jnp.int32
        np.testing.assert_array_equal(y, expected)


@pytest.mark.usefixtures("instructions")
def test_sums_of_the_lowest_codes_do_not_overflow():
    lowest = np.full((2, 30_000), -128, np.int8)
    y = integers.dot_general(lowest, lowest.T)
    np.testing.assert_array_equal(y, np.full((2, 2), 30_000 * 128**2))


@pytest.mark.slow
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("axes", [(0, None), (None, 1), (2, 1), (1, 0)])
def test_vmap_maps_any_axis_of_either_operand(axes):
    shapes = [(4, 6), (6, 5)]
    sizes = [s if a is None else (*s[:a], 3, *s[a:]) for s, a in zip(shapes, axes, strict=True)]
    left, right = (codes(*shape) for shape in sizes)
    wide = jax.vmap(jnp.matmul, axes)(left.astype(np.int32), right.astype(np.int32))
    np.testing.assert_array_equal(jax.vmap(integers.dot_general, axes)(left, right), wide)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_a_product_with_batches(axes):
    shapes = [(2, 4, 6), (2, 6, 5)]
    dims = (((2,), (1,)), ((0,), (0,)))
    sizes = [s if a is None else (3, *s) for s, a in zip(shapes, axes, strict=True)]
    left, right = codes(*sizes[0]).view(np.uint8), codes(*sizes[1])
    wide = jax.vmap(jnp.matmul, axes)(left.astype(np.int32), right.astype(np.int32))
    product = jax.vmap(lambda a, b: unsigned.dot_general(a, b, dims), axes)
    np.testing.assert_array_equal(product(left, right), wide)


WINDOWS = [
    {"window_strides": strides, "padding": padding, "rhs_dilation": dilation}
    for strides, padding, dilation in itertools.product(
        [(1, 1), (2, 1)], ["SAME", "VALID", [(2, 0), (0, 3)]], [None, (1, 2)]
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3)], ids=str)
def test_convolution_is_that_of_whole_numbers(window, kernel, monkeypatch):
    monkeypatch.setattr(integers, "multiplies_unsigned", lambda: True)
    window = window | {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    left, right = codes(2, 11, 9, 5), codes(*kernel, 5, 7)
    y = integers.conv(left, right, window)
    wide = jax.lax.conv_general_dilated(left.astype(np.float64), right.astype(np.float64), **window)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, wide)


@pytest.mark.slow
def test_negative_padding_crops(monkeypatch):
    monkeypatch.setattr(integers, "multiplies_unsigned", lambda: True)
    window = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    left, right = codes(1, 7, 6, 3), codes(3, 3, 3, 2)
    cropped = integers.conv(left[:, 1:, :-2], right, window | {"padding": [(0, 1), (2, 0)]})
    y = integers.conv(left, right, window | {"padding": [(-1, 1), (2, -2)]})
    np.testing.assert_array_equal(y, cropped)


@pytest.mark.slow
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("space", ["W", "DHW"])
def test_convolution_in_one_and_three_dimensions(space):
    n = len(space)
    window = {
        "window_strides": (1,) * n, "padding": "SAME",
        "dimension_numbers": (f"N{space}C", f"{space}IO", f"N{space}C"),
    }  # fmt: skip
    left, right = codes(2, *(5,) * n, 3), codes(*(3,) * n, 3, 4)
    wide = jax.lax.conv_general_dilated(left.astype(np.float64), right.astype(np.float64), **window)
    np.testing.assert_array_equal(integers.conv(left, right, window), wide)


@pytest.mark.usefixtures("instructions")
def test_groups_of_channels():
    window = {
        "window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }  # fmt: skip
    left, right = codes(1, 4, 4, 6), codes(3, 3, 3, 8)
    wide = jax.lax.conv_general_dilated(left.astype(np.float64), right.astype(np.float64), **window)
    np.testing.assert_array_equal(integers.conv(left, right, window), wide)


def test_a_cpu_is_given_bytes_and_others_a_product_that_they_know():
    left, right = jnp.zeros((4, 8), jnp.uint8), jnp.zeros((8, 2), jnp.int8)
    traced = jax.jit(lambda a, b: unsigned.dot_general(a, b, integers.CONTRACT_ONE)).trace(
        left, right
    )
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "(tensor<4x8xui8>, tensor<8x2xi8>) -> tensor<4x2xi32>" in on_cpu
    elsewhere = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "(tensor<4x8xi32>, tensor<8x2xi32>) -> tensor<4x2xi32>" in elsewhere


@pytest.mark.slow
def test_convolution_has_the_same_bits_with_either_instructions(monkeypatch):
    x = jnp.asarray(RNG.normal(size=(2, 6, 6, 8)), jnp.float32)
    w = jnp.asarray(RNG.normal(size=(3, 3, 8, 4)), jnp.float32)
    weight = quantize(w, jnp.full((1, 1, 1, 4), 0.03), format=IntFormat(8))
    how = ActivationGrid(IntFormat(8, signed=False), jnp.float32(0.02), jnp.int32(90))
    found = []
    for answer in (False, True):
        monkeypatch.setattr(integers, "multiplies_unsigned", lambda answer=answer: answer)
        found.append(kernels.conv(x, weight, activation=how, path=kernels.XLA))
    np.testing.assert_array_equal(*found)


def test_the_processor_is_asked_once_and_says_yes_or_no():
    assert chip.multiplies_unsigned() in (True, False)
    assert chip.multiplies_unsigned() is chip.multiplies_unsigned()


@pytest.mark.parametrize(("axes", "batch"), [((0,), ()), ((1, 3), ()), ((2,), (3, 0))])
def test_sums_of_codes_are_those_of_whole_numbers(axes, batch):
    values = codes(3, 4, 5, 6)
    free = [a for a in range(4) if a not in (*axes, *batch)]
    expected = values.astype(np.int64).transpose(*batch, *free, *axes)
    expected = expected.sum(tuple(range(4 - len(axes), 4)))
    np.testing.assert_array_equal(integers.sums(values, axes, batch), expected)


@pytest.mark.slow
def test_a_sampler_keeps_no_wider_copy_of_its_weights(monkeypatch):
    """What XLA moves out of the loop is smaller than the codes of the weights."""
    monkeypatch.setattr(integers, "multiplies_unsigned", lambda: True)
    n, rows = 1024, 8
    weight = quantize(jnp.ones((n, n), jnp.float32), jnp.ones((1, n)), format=IntFormat(8))
    how = ActivationGrid(IntFormat(8, signed=False), jnp.float32(0.02), jnp.int32(90))

    def sampler(x, w):
        def step(x, _):
            return kernels.matmul(x, w, activation=how, path=kernels.XLA), None

        return jax.lax.scan(step, x, length=4)[0]

    quick_jit = jax.jit(sampler).lower(jnp.ones((rows, n), jnp.float32), weight).compile()
    assert quick_jit.memory_analysis().temp_size_in_bytes < n * n
