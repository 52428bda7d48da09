"""Recipes beside each other, and as rules of other tools."""

import dataclasses
import re

import jax.numpy as jnp
import pytest

from qdiffjax import hardware, precision, quant
from qdiffjax.precision import OperandFormat, Phase, Recipe, SiteBits, exports
from qdiffjax.sites import list_sites
from tests import worlds

INT = quant.IntFormat
NET = worlds.handwritten()
SITES = list_sites(NET.fn, *NET.args)
BASE = precision.uniform(SITES, weight_bits=8, activation_bits=8)


def test_differences_name_the_sites_the_formats_and_the_bytes():
    four = dict(BASE.bits)
    four["out/kernel"] = SiteBits(OperandFormat(quant.NVFP4), 8)
    after = Recipe(four, (Phase((0, 1), {"conv/kernel": SiteBits()}),))
    table = exports.differences(BASE, after, SITES)
    assert [row[0] for row in table.rows] == ["conv/kernel", "out/kernel"]
    assert table.rows[0][2] == "W 8 A 8; steps 0-1: W - A -"
    assert table.rows[1][2] == "W nvfp4 A 8"
    sizes = {s.name: s.parameters for s in SITES}
    saved = exports.weight_bytes(BASE, SITES) - exports.weight_bytes(after, SITES)
    scales = NET.params["out"]["kernel"].shape[-1]  # of 4 bytes; nvfp4 has its own in 4.5 bits
    assert saved == pytest.approx(sizes["out/kernel"] * 3.5 / 8 + 4 * scales)
    assert not exports.differences(BASE, BASE, SITES).rows
    with pytest.raises(TypeError, match=r"spelled_out\(calibration, 'W4A8'\)"):
        exports.differences("W4A8", "W8A8", SITES)


def test_differences_tell_mean_bits_and_what_is_predicted():
    wide = precision.uniform(SITES, weight_bits=16, activation_bits=8)
    (told,) = exports.differences(wide, BASE, SITES).notes
    before, after = map(float, re.findall(r"([\d.]+) and ([\d.]+) bits each", told)[0])
    num = sum(s.parameters for s in SITES if s.weight is not None)
    assert after == pytest.approx(8 * exports.weight_bytes(BASE, SITES) / num, rel=5e-3)
    assert before - after == pytest.approx(8)  # scales are the same
    notes = exports.differences(wide, BASE, SITES, predicted=(0.25, 0.5)).notes
    assert notes[1] == "RMSE of the samples, predicted: 0.25 before, 0.5 after, 2 times."


@pytest.mark.parametrize("words", ["4", "4g5", "4g3 affine", "8 tensor", ":e4m3", "3 affine"])
def test_bytes_are_those_of_the_codes_and_of_the_grids_that_rounding_makes(words):
    """Groups that divide what is summed, or that end inside; hardware counts the same."""
    entry = precision.parse_operand(words)
    recipe = Recipe({s.name: SiteBits(entry) for s in SITES if s.weight is not None})
    grids = []

    def noted(site, w, scale, zero_point, format):
        grids.append(scale.size + (0 if zero_point is None else zero_point.size))
        return w

    weights = precision.weight_operands(NET.fn, *NET.args)
    precision.round_weights(weights, SITES, recipe, noted)
    codes = sum(w.size for w in weights.values()) * entry.bits / 8
    assert exports.weight_bytes(recipe, SITES) == pytest.approx(codes + 4 * sum(grids))
    counts = hardware.count(SITES, recipe=recipe)
    held = hardware.weight_bytes(counts, hardware.widths(counts, recipe))
    whole = sum(-(-w.size * entry.bits // 8) for w in weights.values())
    assert held.sum() == whole + 4 * sum(grids)


def test_a_weight_rounded_anew_at_every_call_is_stored_as_itself_beside_its_grids():
    weighted = [s for s in SITES if s.weight is not None]
    four, shaped = (
        Recipe({s.name: SiteBits(OperandFormat(quant.IntFormat(4), rounding=rounding))
                for s in weighted}) for rounding in ("nearest", "shaped")
    )  # fmt: skip
    grids = exports.weight_bytes(four, SITES) - sum(s.parameters for s in weighted) / 2
    whole = exports.weight_bytes(Recipe({}), SITES)
    assert exports.weight_bytes(shaped, SITES) == pytest.approx(whole + grids)


def test_skipped_modules_are_those_without_a_quantized_weight():
    recipe = precision.uniform(SITES, weight_bits=8, activation_bits=8, globs=("*", "!out/*"))
    assert exports.skipped(recipe, SITES) == ["out"]


def shared(p, x, t):
    """A module that is used twice, and one whose weight has no folder."""
    for _ in range(2):
        x = jnp.tanh(x @ p["mid"]["kernel"]) @ p["out"]
    return x


SHARED = list_sites(shared, {"mid": {"kernel": jnp.eye(4)}, "out": jnp.eye(4)}, jnp.ones((1, 4)),
                    jnp.float32(1))  # fmt: skip


def test_a_module_that_is_used_twice_is_one():
    names = [s.name for s in SHARED if s.weight is not None]
    assert names == ["mid/kernel", "out", "mid/kernel#2", "out#2"]
    whole = Recipe(dict.fromkeys(names, SiteBits(4)))
    assert exports.skipped(Recipe({}), SHARED) == ["mid", "out"]
    assert exports.to_qwix(whole, SHARED) == [{"module_path": "mid|out", "weight_qtype": "int4"}]
    assert exports.from_qwix(exports.to_qwix(whole, SHARED), SHARED) == whole
    once = Recipe({"mid/kernel#2": SiteBits(4)})
    assert exports.skipped(once, SHARED) == ["out"]
    for recipe in (once, Recipe({**whole.bits, "out": SiteBits(8)})):
        with pytest.raises(ValueError, match="round them alike"):
            exports.to_qwix(recipe, SHARED)


@pytest.mark.parametrize(
    "bits", [SiteBits(8, 8), SiteBits(4), SiteBits(OperandFormat(quant.IntFormat(4), 32), 8),
             SiteBits(OperandFormat(quant.E4M3FN), OperandFormat(quant.E4M3FN)),
             SiteBits(OperandFormat(quant.nf4())), SiteBits(OperandFormat(quant.E2M1)),
             SiteBits(OperandFormat(INT(4, signed=False)), OperandFormat(INT(8))),
             SiteBits(8, OperandFormat(INT(8), scales="static")),
             SiteBits(8, OperandFormat(INT(8, signed=False), scales="dynamic"))],
    ids=str,
)  # fmt: skip
def test_rules_of_qwix_come_back(bits):
    weighted = [s.name for s in SITES if s.weight is not None]
    recipe = Recipe({name: SiteBits(8, 8) if name == weighted[0] else bits for name in weighted})
    rules = exports.to_qwix(recipe, SITES)
    assert exports.from_qwix(rules, SITES) == recipe


@pytest.mark.parametrize("path", ["nothing.*", "(", "out/kernel"])
def test_a_rule_that_matches_no_module_is_refused(path):
    with pytest.raises(ValueError, match=r"module_path: got .*of some of \d modules; perhaps"):
        exports.from_qwix([{"module_path": path, "weight_qtype": "int8"}], SITES)


def test_the_first_rule_that_matches_counts():
    rules = [{"module_path": "out", "weight_qtype": "int4"},
             {"module_path": ".*", "weight_qtype": "int8", "act_qtype": "int8"}]  # fmt: skip
    recipe = exports.from_qwix(rules, SITES)
    assert recipe.bits["out/kernel"] == SiteBits(4)
    assert recipe.bits["conv/kernel"] == SiteBits(8, OperandFormat(INT(8)))  # absmax, as qwix has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """The fields of `qwix.QuantizationRule` with its defaults, qwix/_src/qconfig.py."""

    module_path: str = ".*"
    op_names: tuple = ()
    weight_qtype: object = None
    act_qtype: object = None
    tile_size: object = None
    act_static_scale: bool | None = None
    weight_calibration_method: str = "absmax"
    act_calibration_method: str | None = None
    act_batch_axes: tuple = (0,)
    sparsity_rule: object = None


def test_rules_are_read_as_objects_and_what_they_say_beside_is_refused():
    rule = Rule(module_path="out", weight_qtype=jnp.int8, act_qtype=jnp.int8, tile_size=3,
                act_static_scale=False, act_calibration_method="minmax")  # fmt: skip
    assert exports.from_qwix([rule], SITES).bits == {"out/kernel": SiteBits(
        OperandFormat(INT(8), 3), OperandFormat(INT(8, signed=False), scales="dynamic")
    )}  # fmt: skip
    for change, message in (({"op_names": ("einsum",)}, "got 'op_names'"),
                            ({"weight_calibration_method": "rms,7"}, "got 'rms,7'"),
                            ({"sparsity_rule": object()}, "got 'sparsity_rule'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            exports.from_qwix([dataclasses.replace(rule, **change)], SITES)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe({}, (Phase((0,), {"out/kernel": SiteBits(8)}),)), "one by step"),
        (Recipe({"out/kernel": SiteBits(OperandFormat(quant.NVFP4))}), "integers, floats or nf4"),
    ],
)
def test_what_qwix_cannot_say_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        exports.to_qwix(recipe, SITES)
    with pytest.raises(ValueError, match="perhaps module_path"):
        exports.from_qwix([{"modul_path": "out"}], SITES)
    with pytest.raises(ValueError, match="got 'int4x'"):
        exports.from_qwix([{"module_path": "out", "weight_qtype": "int4x"}], SITES)


def edges(first, last, num_calls):
    """The recipe with activations in full precision at its first and last steps."""
    steps = (*range(first), *range(num_calls - last, num_calls))
    wide = {name: bits._replace(activation=None) for name, bits in BASE.bits.items()}
    return Recipe(BASE.bits, (Phase(steps, wide),) if steps else ())


@pytest.mark.parametrize(("first", "last"), [(3, 3), (0, 2), (4, 0), (0, 0)])
def test_step_policies_come_back(first, last):
    policy = exports.to_step_policy(edges(first, last, 10), 10)
    assert (policy["first_steps"]["count"], policy["last_steps"]["count"]) == (first, last)
    assert exports.from_step_policy(policy, BASE, 10) == edges(first, last, 10)


def test_a_published_policy_is_read():
    """Three first and last steps of fifty, with a field that is none of a sampler's."""
    policy = {
        "schema_version": 1, "type": "first_last_n", "index_space": "denoising_loop_iteration",
        "scope": ["transformer"], "default_mode": "native",
        "first_steps": {"count": 3, "mode": "a16"}, "last_steps": {"count": 3, "mode": "a16"},
        "overlap": "a16", "reasoner": "a16",
    }  # fmt: skip
    recipe = exports.from_step_policy(policy, BASE, 50)
    assert recipe.phases[0].steps == (0, 1, 2, 47, 48, 49)
    assert exports.to_step_policy(recipe, 50).items() <= policy.items()
    assert exports.from_step_policy(policy, BASE, 4).phases[0].steps == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [(Recipe(BASE.bits, (Phase((4,), edges(1, 0, 10).phases[0].bits),)), "the first and the last"),
     (Recipe(BASE.bits, (Phase((0,), {"conv/kernel": SiteBits(4, None)}),)), "says no more"),
     (Recipe(BASE.bits, (Phase((0,), {"conv/kernel": SiteBits(8, None)}),)), "says no more")],
    ids=["middle", "weights", "some sites"],
)  # fmt: skip
def test_what_a_step_policy_cannot_say_is_refused(recipe, said):
    with pytest.raises(ValueError, match=said):
        exports.to_step_policy(recipe, 10)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"type": "windows"},
                                    {"first_steps": {"count": 3, "mode": "a8"}},
                                    {"last_steps": {"count": -1, "mode": "a16"}}])  # fmt: skip
def test_other_policies_are_refused(change):
    policy = exports.to_step_policy(edges(1, 1, 10), 10) | change
    with pytest.raises(ValueError, match="policy"):
        exports.from_step_policy(policy, BASE, 10)
