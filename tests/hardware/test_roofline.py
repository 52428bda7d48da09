"""Times on chips: worked cases, and where the two roofs meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import hardware
from qdiffjax.hardware import chips, costs
from tests.worlds import product

TOY = chips.Chip("toy", {"int8": 8e9, "bf16": 2e9, "f32": 1e9}, 1e8, 1e9)


def test_a_worked_case():
    c = product(10, 100, 1000)
    found = hardware.predict_times(c, hardware.uniform(8, 8), TOY)
    np.testing.assert_allclose(found.compute, 2e6 / 8e9)
    moved = 100_000 + 4_000 + 1_000 + 40_000
    np.testing.assert_allclose(found.memory, moved / 1e8)
    np.testing.assert_allclose(found.intensity, 2e6 / moved)
    assert found.is_memory_bound.all()
    np.testing.assert_allclose(found.total, moved / 1e8)
    assert found.kind == "predicted"


@pytest.mark.parametrize("chip", hardware.CHIPS, ids=lambda c: c.name)
def test_both_roofs_meet_at_the_ridge(chip):
    for bits, full in ((8, 16), (16, 16), (32, 32)):
        at = hardware.predict_times(
            product(64, 512, 128), hardware.uniform(bits, bits, full=full), chip
        )
        ridge = chip.rates[chips.multiplied_as(chip, bits, full=full)] / chip.bandwidth
        np.testing.assert_allclose(at.compute / at.memory, at.intensity / ridge)
        assert (at.is_memory_bound == (at.intensity < ridge)).all()


def test_two_chips_with_the_same_units_differ_by_their_memory_alone():
    for m in (1, 100_000):
        c, w = product(m, 4096, 4096), hardware.uniform(8, 8, full=16)
        on_h100, on_h200 = (hardware.predict_times(c, w, chip) for chip in (chips.H100, chips.H200))
        ratio = on_h100.total / on_h200.total
        np.testing.assert_allclose(ratio, 4.8 / 3.35 if m == 1 else 1.0)


@pytest.mark.parametrize(
    ("chip", "bits", "full", "family", "expected"),
    [(chips.A100, 4, 16, hardware.INTEGER, "int4"), (chips.H100, 4, 16, hardware.INTEGER, "int8"),
     (chips.H100, 8, 16, hardware.FLOAT, "f8"), (chips.A100, 8, 16, hardware.FLOAT, "bf16"),
     (chips.V5E, 12, 16, hardware.INTEGER, "bf16"), (chips.V5E, 12, 32, hardware.INTEGER, "f32"),
     (chips.LAPTOP, 16, 16, hardware.INTEGER, "f32"), (chips.V7X, 16, 16, hardware.FLOAT, "bf16")],
)  # fmt: skip
def test_codes_are_multiplied_in_the_narrowest_format_that_holds_them(
    chip, bits, full, family, expected
):
    assert hardware.multiplied_as(chip, bits, full=full, family=family) == expected
    table = hardware.rate_table(chip, full=full, family=family)
    assert table[bits] == chip.rates[expected]


def test_weights_alone_in_codes_save_memory_but_no_multiplication():
    c, chip = product(256, 4096, 4096), chips.H100
    both = hardware.uniform(16, 16, full=16)
    alone = hardware.uniform(4, 16, full=16)
    before, after = (hardware.predict_times(c, w, chip) for w in (both, alone))
    np.testing.assert_array_equal(after.compute, before.compute)
    assert (after.memory < before.memory).all()


def test_traced_widths_give_the_same_times():
    c, bits = product(32, 512, 512), np.array([[2, 4, 8, 16, 32], [8, 8, 8, 16, 32]])
    for chip in hardware.CHIPS:
        fn = lambda w, a, chip=chip: hardware.predict_times(c, costs.Widths(w, a), chip).seconds  # noqa: E731
        found = jax.jit(jax.vmap(fn))(*jnp.asarray(bits)[..., None])
        exact = hardware.predict_times(c, costs.Widths(*bits[..., None]), chip).seconds
        np.testing.assert_allclose(found, exact, rtol=1e-12)  # 512 * 512 codes fill whole bytes


def test_rates_of_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="f32"):
        chips.Chip("x", {"int8": 1.0}, 1.0, 1.0)
    with pytest.raises(ValueError, match="full: got 8"):
        hardware.multiplied_as(TOY, 8, full=8)


@pytest.mark.parametrize(
    ("kind", "chip"),
    [("NVIDIA H100 80GB HBM3", chips.H100), ("NVIDIA H200", chips.H200), ("TPU v4", chips.V4),
     ("NVIDIA A100-SXM4-80GB", chips.A100), ("TPU v5 lite", chips.V5E), ("TPU v5", chips.V5P),
     ("TPU v5p", chips.V5P), ("TPU v5e", chips.V5E), ("v5e", chips.V5E), ("v5p", chips.V5P),
     ("TPU v6 lite", chips.V6E), ("TPU v6e", chips.V6E), ("cpu", None)],
)  # fmt: skip
def test_devices_are_known_by_what_jax_calls_them(kind, chip):
    assert hardware.find_chip(kind) is chip


def test_two_devices_of_a_v7x_are_one():
    half, c, w = hardware.find_chip("TPU7x"), product(64, 512, 512), hardware.uniform(8, 8)
    whole, part = (hardware.predict_times(c, w, chip).total for chip in (chips.V7X, half))
    np.testing.assert_allclose(part, 2 * whole)
