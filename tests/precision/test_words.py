"""Recipes in words: what they mean, and what means nothing."""

import pytest

from experiments.number_formats.formats import ENTRIES
from qdiffjax import precision, quant
from qdiffjax.precision import OperandFormat, SiteBits, formats
from qdiffjax.precision.words import parse_recipe
from tests.precision.small import (
    INT,
    calibrated,
)

MSFP12 = formats.FORMATS["msfp12"]


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("W4A8", 4, 8),
        ("w4 a8", 4, 8),
        ("A6", None, 6),
        ("float", None, None),
        ("W4g32 A8 token", OperandFormat(INT(4), 32), OperandFormat(INT(8, False), "token")),
        ("W:nvfp4 A:mxfp8", OperandFormat(quant.NVFP4), OperandFormat(quant.MXFP8_E4M3)),
        ("W:e2m1g16", OperandFormat(quant.E2M1, 16), None),
        ("W:e3m4", OperandFormat(quant.FloatFormat(3, 4)), None),
        ("W4 affine mse nearest", OperandFormat(INT(4, False), None, None, "mse", "nearest"), None),
        ("W3 shaped A8 symmetric static",
         OperandFormat(INT(3), rounding="shaped"), OperandFormat(INT(8), scales="static")),
        ("W8 A8 4-ranges", 8, OperandFormat(INT(8, False), scales="4-ranges")),
        ("A8 by-step stochastic", None,
         OperandFormat(INT(8, False), scales="by-step", rounding="stochastic")),
    ],
)  # fmt: skip
def test_words_of_one_line(text, weight, activation):
    (line,) = parse_recipe(text)
    assert line == ((), (), SiteBits(weight, activation))


def test_lines_name_sites_and_steps():
    text = "W4A8; attn/* !attn/out/*: W8A8\nsteps 0-2,47: W8A16\nsteps 5 head/*: float"
    assert [line[:2] for line in parse_recipe(text)] == [
        ((), ()), ((), ("attn/*", "!attn/out/*")), ((0, 1, 2, 47), ()), ((5,), ("head/*",)),
    ]  # fmt: skip
    assert parse_recipe(text)[3].bits == SiteBits()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_format_is_written_as_it_is_read(name):
    is_block = isinstance(formats.FORMATS[name], quant.BlockFormat)  # finds its own scales
    for words in ("", " sums", " stochastic", *([] if is_block else [" mse"])):
        entry = precision.parse_operand(f":{name}{words}")
        assert entry.format == formats.FORMATS[name]
        assert precision.parse_operand(str(entry)) == entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_format_that_is_compared_has_a_name_in_recipes(entry):
    """All of `experiments.number_formats`, of which none is written as another."""
    operand = OperandFormat(entry.format)
    assert precision.parse_operand(str(operand)) == operand


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("pot4", quant.LogFormat(4, 1.0, signed=True)), ("upot4", quant.LogFormat(4, 1.0)),
        ("root5", quant.LogFormat(5, 0.5, signed=True)), ("uroot5", quant.LogFormat(5, 0.5)),
        ("lloyd3", quant.lloyd_max(3)), ("bfp4", quant.block_float(4, 16)), ("bfp3", MSFP12),
        ("int4b32", quant.BlockFormat(INT(4), 32, quant.absmax_scale, 16)),
    ],
)  # fmt: skip
def test_a_name_with_numbers_is_read_as_they_say(name, format):
    operand = precision.parse_operand(f":{name}")
    assert operand.format == format
    assert str(operand) == (f":{name}" if format != MSFP12 else ":msfp12")
    own = quant.CodebookFormat((-1.0, -0.2, 0.3, 1.0))
    assert str(OperandFormat(own)) == ":CodebookFormat"  # none of a name, so not to be written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W:pot9", "got 9"),
        ("W:nvfp5", "perhaps nvfp4"),
        ("W4 toke", "perhaps token"),
        ("W:e4m3 affine", "expected integers beside 'affine'"),
        ("W:nvfp4g16", "for a block format, expected None"),
        ("W:nvfp4 A:mxfp8 static", "static for a block format, expected 'dynamic'"),
        ("W4 static A8", "such as 'W4 A8 static'"),
        ("W4 mse absmax", "expected one calibration"),
        ("A8 token static", "with static scales, expected 'tensor'"),
        ("W4g0", "size of a group"),
        ("W17", r"expected 1\.\.16"),
        ("W4A8; steps 3-1: W8", "a form like 0-3,47-49"),
        ("W4A8; steps: W8A8", "perhaps|a glob|a form like"),
        ("W4A8; ;A8 W4", "got 'w4'"),
    ],
)
def test_words_that_mean_nothing_are_refused(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        precision.quantize(calibrated(), text)
