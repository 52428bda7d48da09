"""Packed weights with their recipe: what is read back is what was lowered."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from tests.precision.small import STEPS, X_T, lowered_calibration

RECIPES = ("W4A8", "W8A8", "W3A6; steps 0-1: W8A8", "W:e4m3 A:e4m3 static", "W:nf4 A8 by-step",
           "W2 affine A8", "W:nvfp4 A8", "W4g7 mse A8; steps 0: W:mxfp6",
           "W4A8; steps 0: W4A4; steps 1: W8A8")  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", precision.DiagnosisWarning)
        yield


ALTERNATING = {"round_fn": precision.shaped(jax.random.key(3), extra_bits=3)}


@pytest.mark.parametrize(
    ("recipe", "rounding"), [*((r, {}) for r in RECIPES), ("W4A8; steps 0: W6A8", ALTERNATING)]
)
def test_what_is_read_is_what_was_lowered_bit_for_bit(recipe, rounding, tmp_path):
    calibration, x_T = lowered_calibration(), X_T.astype(jnp.float32)
    precision.save_quantized(tmp_path / "codes", calibration, recipe, sites=("*",), **rounding)
    again = precision.load_quantized(tmp_path / "codes", calibration)
    q = precision.lower(calibration, recipe, sites=("*",), **rounding)
    assert jax.tree.structure(again.site_inputs) == jax.tree.structure(q.site_inputs)
    for ours, theirs in zip(*map(jax.tree.leaves, (again.site_inputs, q.site_inputs)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    run = jax.jit(lambda q: diffusion.sample(precision.quantized_call(q), x_T, STEPS,
                                             per_call=q.calls(STEPS)).x_0)  # fmt: skip
    np.testing.assert_array_equal(run(again), run(q))


def test_four_bits_take_half_a_byte(tmp_path):
    calibration = lowered_calibration()
    sizes = {b: precision.save_quantized(tmp_path / str(b), calibration, f"W{b}", sites=("*",))
             for b in (4, 8)}  # fmt: skip
    count = sum(w.size for w in calibration.weights.values())
    assert sizes[8] - sizes[4] == pytest.approx(count / 2, abs=len(calibration.weights))
    assert (tmp_path / "4").stat().st_size < sizes[4] + 6000  # JSON with ranges of five steps


def test_codes_that_alternate_take_their_extra_bits(tmp_path):
    calibration = lowered_calibration()
    path, options = tmp_path / "codes", {"sites": ("*",)}
    plain = precision.save_quantized(path, calibration, "W4", **options)
    fine = precision.save_quantized(path, calibration, "W4", **options, **ALTERNATING)
    count, seeds = sum(w.size for w in calibration.weights.values()), 4 * len(calibration.weights)
    assert fine - plain - seeds == pytest.approx(count * 3 / 8, abs=len(calibration.weights))
    with pytest.raises(ValueError, match="round_fn without codes"):
        precision.save_quantized(tmp_path / "codes", calibration, "W4",
                                 round_fn=precision.shaped(jax.random.key(3)))  # fmt: skip


def test_damaged_files_and_other_networks_are_refused(tmp_path):
    calibration, path = lowered_calibration(), tmp_path / "codes"
    precision.save_quantized(path, calibration, "W4A8", sites=("*",))
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 100):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match="damaged bytes"):
            precision.load_quantized(path, calibration)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged bytes"):
        precision.load_quantized(path, calibration)
