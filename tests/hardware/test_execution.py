"""How chips run formats, worked cases of their seconds, and what is said of a fallback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import hardware, precision, quant
from qdiffjax.hardware import chips
from qdiffjax.precision import OperandFormat, SiteBits
from qdiffjax.sites import list_sites
from qdiffjax.strategies import choices

TOY = chips.Chip("toy", {"int8": 8e9, "bf16": 2e9, "f32": 1e9}, 1e8, 1e9)
E4M3 = OperandFormat(quant.E4M3FN)
CHIP = {chip.name: chip for chip in hardware.CHIPS}


def product_site(m, k, n):
    """One product [m, k] x [k, n], whose site is "kernel"."""
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((m, k), (k, n)))
    sites = list_sites(lambda params, x: x @ params["kernel"], {"kernel": kernel}, x)
    return next(site for site in sites if site.kind == "dot")


def bits_of(words: str) -> SiteBits:
    return choices.entry_of(words)


@pytest.mark.parametrize(
    ("words", "chip", "product", "fallback"),
    [("W8A8", "H200", "int8", None), ("W4A8", "H200", "int8", None), ("W4A4", "A100", "int4", None),
     ("W4A4", "v5e", "int8", None), ("W:e4m3 A:e4m3", "H200", "f8", None),
     ("W:e4m3 A:e4m3", "v5e", "bf16", "no 8-bit float units"),
     ("W:e4m3 A:e4m3", "laptop", "f32", "no 8-bit float units"),
     ("W4", "H200", "bf16", None), ("W8A:e4m3", "H200", "bf16", "operands of two kinds"),
     ("W:nvfp4 A:nvfp4", "H200", "bf16", "no kernel for the format"),
     ("W:nf4", "H200", "bf16", "weights unpacked"), ("W8A8g32", "H200", "bf16",
      "no kernel for the format")],
)  # fmt: skip
def test_a_chip_multiplies_codes_it_has_units_for_and_says_what_it_falls_back_from(
    words, chip, product, fallback
):
    way = hardware.run_as(bits_of(words), CHIP[chip])
    assert (way.product, way.fallback) == (product, fallback)


def test_seconds_of_a_worked_case():
    """10 x 100 times 100 x 1000; 8-bit codes of 1e5 weights with 1000 scales, 1e4 outputs."""
    site = product_site(10, 100, 1000)
    moved = 100_000 + 4_000 + 1_000 + 20_000
    static = SiteBits(8, 8)
    passes = 1_000 * (2 + 1)  # read as bfloat16, written as codes
    found = hardware.site_seconds(site, static, TOY)
    np.testing.assert_allclose(found, (moved + passes) / 1e8)
    dynamic = SiteBits(8, OperandFormat(quant.IntFormat(8, signed=False), scales="dynamic"))
    found = hardware.site_seconds(site, dynamic, TOY)
    np.testing.assert_allclose(found, (moved + passes + 2_000) / 1e8)


def test_weights_alone_are_read_as_codes_and_multiply_in_full_precision():
    few, many = product_site(1, 100, 1000), product_site(10_000, 100, 1000)
    half = hardware.site_seconds(few, SiteBits(4), TOY)
    np.testing.assert_allclose(half, (50_000 + 4_000 + 200 + 2_000) / 1e8)
    fast = chips.Chip("fast", TOY.rates, 1e15, 1e9)
    found = hardware.site_seconds(many, SiteBits(4), fast)
    np.testing.assert_allclose(found, 2e9 / 2e9)


def test_weights_that_no_kernel_multiplies_are_written_and_read_as_real_numbers():
    site = product_site(1, 100, 1000)
    plain, unpacked = (
        hardware.site_seconds(site, bits_of(words), TOY) for words in ("W4", "W:nf4")
    )
    np.testing.assert_allclose(unpacked - plain, 2 * 100_000 * 2 / 1e8)


def test_a_recipe_for_one_chip_is_dearer_on_one_without_its_units():
    site = product_site(4096, 4096, 4096)
    recipes = {"fp8": precision.Recipe({site.name: bits_of("W:e4m3 A:e4m3")}),
               "int8": precision.Recipe({site.name: bits_of("W8A8")})}  # fmt: skip
    found = hardware.times_on_chips((site,), recipes, (chips.V5E, chips.V7X))
    assert found.kind == "predicted"
    assert found.recipes == ("16 bits", "fp8", "int8")
    ratio = found.seconds / found.seconds[0]
    assert ratio[1, 0] > 1 > ratio[2, 0]  # v5e has int8, no fp8
    assert ratio[1, 1] < 1 < ratio[2, 1]  # v7x has fp8; its int8 is no faster than bfloat16
    assert found.fallbacks == {("fp8", "v5e"): {"no 8-bit float units": 1}}
    text = str(found)
    assert "* fp8 on v5e: no 8-bit float units (1 sites)" in text
    np.testing.assert_allclose(
        found.seconds[2, 0], hardware.site_seconds(site, bits_of("W8A8"), chips.V5E)
    )


def test_recipes_of_other_networks_and_by_step_are_refused():
    site = product_site(2, 3, 4)
    for recipe, match in (
        (precision.Recipe({"elsewhere": SiteBits(4)}), "elsewhere"),
        (precision.Recipe({}, (precision.Phase((0,), {site.name: SiteBits(4)}),)), "by step"),
    ):
        with pytest.raises(ValueError, match=match):
            hardware.times_on_chips((site,), {"made": recipe})
