"""Packed weights with their recipe: what is read back is what was lowered."""

import dataclasses
import functools
import io
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, hardware, precision, quant
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import OperandFormat, Recipe, SiteBits, exports
from tests import worlds
from tests.precision.small import SCHEDULE, STEPS, X_T, lowered_calibration

RECIPES = ("W4A8", "W8A8", "W3A6; steps 0-1: W8A8", "W:e4m3 A:e4m3 static", "W:nf4 A8 by-step",
           "W2 affine A8", "W:nvfp4 A8", "W4g7 mse A8; steps 0: W:mxfp6",
           "W4A8; steps 0: W4A4; steps 1: W8A8")  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", precision.DiagnosisWarning)
        yield


@jax.jit
def samples(q):
    x_T = X_T.astype(jnp.float32)
    return diffusion.sample(precision.quantized_call(q), x_T, STEPS, per_call=q.calls(STEPS)).x_0


ALTERNATING = {"round_fn": precision.shaped(jax.random.key(3), extra_bits=3)}


@pytest.mark.parametrize(
    ("recipe", "rounding"),
    [
        *((r, {}) for r in RECIPES),
        *((r, ALTERNATING) for r in ("W4A8; steps 0: W6A8", "W4g7A8; steps 0: W3g4A8")),
    ],
)
def test_what_is_read_is_what_was_lowered_bit_for_bit(recipe, rounding, tmp_path):
    calibration = lowered_calibration()
    precision.save_quantized(tmp_path / "codes", calibration, recipe, sites=("*",), **rounding)
    again = precision.load_quantized(tmp_path / "codes", calibration)
    q = precision.lower(calibration, recipe, sites=("*",), **rounding)
    assert jax.tree.structure(again.site_inputs) == jax.tree.structure(q.site_inputs)
    for ours, theirs in zip(*map(jax.tree.leaves, (again.site_inputs, q.site_inputs)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(samples(again), samples(q))


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


@functools.cache
def whole_blocks():
    """A convolution and two products whose sums are of whole blocks of 16 and 32."""
    params = {
        "conv": worlds.normal(1, 3, 3, 32, 8, scale=0.1, dtype=jnp.float32),
        "in": worlds.normal(2, 32, 64, scale=0.2, dtype=jnp.float32),
        "out": 100 * worlds.normal(3, 64, 32, scale=0.1, dtype=jnp.float32),
    }  # fmt: skip

    def net_fn(p, x, t):
        h = worlds.convolve(x, p["conv"])
        return jnp.tanh(x @ p["in"]) @ p["out"] + jnp.mean(h, -1, keepdims=True)

    denoiser = Denoiser(net_fn, params, SCHEDULE, (4, 4, 32))
    return precision.calibrate(denoiser, STEPS, jax.random.key(0), num_samples=2)


@pytest.mark.parametrize(
    ("words", "factors"), [("nvfp4", 3), ("mxfp6", 0), ("mxint8", 0), ("msfp12", 0)]
)
def test_scales_of_blocks_take_the_byte_that_is_counted(words, factors, tmp_path):
    calibration, path = whole_blocks(), tmp_path / "codes"
    entry = precision.parse_operand(f":{words}")
    table = {s.name: SiteBits(entry) for s in calibration.sites if s.weight is not None}
    recipe = Recipe(table)
    size = precision.save_quantized(path, calibration, recipe)
    assert size == exports.weight_bytes(recipe, calibration.sites) + 4 * factors
    counts = hardware.count(calibration.sites, recipe=recipe)
    widths = hardware.widths(counts, recipe)
    assert size == np.sum(hardware.weight_bytes(counts, widths)) + 4 * factors
    with zipfile.ZipFile(path) as archive:
        scales = [np.load(io.BytesIO(archive.read(f"0/{name}:scale.npy"))) for name in table]
    assert {a.dtype for a in scales} == {np.dtype(np.uint8)}
    assert path.stat().st_size < size + 8000  # JSON with ranges of five steps, names of arrays
    q, again = precision.lower(calibration, recipe), precision.load_quantized(path, calibration)
    for name in table:
        ours, theirs = (each.site_inputs[name].weight for each in (again, q))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Thirds:
    """A user's own format, multiples of one third up to 2, which float32 does not hold."""

    name, bits, low, high, is_static = "thirds", 4, -2.0, 2.0, True

    def round(self, v, round_fn):
        return round_fn(3 * v) / 3

    def levels(self):
        return np.arange(-6, 7) / 3


@pytest.mark.parametrize("words", ["W:thirds A8", "W:thirdsg5 A:thirds static; steps 0: W8A8"])
def test_a_format_of_ones_own_is_saved_and_read_where_it_is_named(words, tmp_path, monkeypatch):
    calibration, path = lowered_calibration(), tmp_path / "codes"
    with monkeypatch.context() as registry:
        registry.setitem(precision.FORMATS, "thirds", Thirds())
        precision.save_quantized(path, calibration, words, sites=("*",))
        q = precision.lower(calibration, words, sites=("*",))
        np.testing.assert_array_equal(
            samples(precision.load_quantized(path, calibration)), samples(q)
        )
    with pytest.raises(ValueError, match=r"'thirds', expected one of .*formats=\{'thirds': ...\}"):
        precision.load_quantized(path, calibration)
    again = precision.load_quantized(path, calibration, {"thirds": Thirds()})
    np.testing.assert_array_equal(samples(again), samples(q))


def test_codes_of_a_format_of_ones_own_are_its_numbers_in_its_bits(tmp_path):
    calibration = lowered_calibration()
    table = {site.name: SiteBits(OperandFormat(Thirds())) for site in calibration.sites
             if site.weight is not None}  # fmt: skip
    size = precision.save_quantized(tmp_path / "own", calibration, Recipe(table))
    assert size == precision.save_quantized(tmp_path / "4", calibration, "W4", sites=("*",))
    q, simulated = (fn(calibration, Recipe(table)) for fn in (precision.lower, precision.quantize))
    for name in table:
        held = quant.dequantize(q.site_inputs[name].weight)
        np.testing.assert_allclose(held, simulated.site_inputs[name].weight, rtol=3e-7)


def test_a_format_without_a_list_of_its_numbers_or_with_another_is_refused(tmp_path):
    calibration, path = lowered_calibration(), tmp_path / "codes"

    def own(**methods):
        cls = type("Thirds", (Thirds,), methods)
        return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))()

    def save(format):
        recipe = Recipe({"out": SiteBits(OperandFormat(format), 8)})
        precision.save_quantized(path, calibration, recipe)

    plain = type("Plain", (), {k: v for k, v in vars(Thirds).items() if k in (
        "name", "bits", "low", "high", "is_static", "round")})  # fmt: skip
    plain = jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(plain))()
    with pytest.raises(ValueError, match=r"out: got a Plain without codes, expected a method lev"):
        save(plain)
    with pytest.raises(ValueError, match="17 levels of a Thirds of 4 bits, expected at most 16"):
        save(own(levels=lambda self: np.arange(-8, 9) / 3))
    with pytest.raises(ValueError, match=r"numbers 0.333 away from the levels"):
        save(own(levels=lambda self: np.arange(-6, 7, 3) / 3))
    save(Thirds())
    wider = own(levels=lambda self: np.arange(-7, 8) / 3)
    with pytest.raises(ValueError, match="other levels of 'thirds'"):
        precision.load_quantized(path, calibration, {"thirds": wider})
