"""Recipes beside each other, and as the rules of other tools."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qdiffjax._checks import (
    check_count,
    check_names,
    check_number,
    check_type,
    require,
    suggest,
)
from qdiffjax._tables import Table, number
from qdiffjax.precision.formats import DYNAMIC, STATIC, OperandFormat, check_bits, width_of
from qdiffjax.precision.printing import BYTES, steps_text, width
from qdiffjax.precision.recipe import Phase, Recipe, SiteBits, check_recipe
from qdiffjax.precision.weights import weight_bits
from qdiffjax.quant import E4M3FN, E5M2, MAX_BITS, BlockFormat, FloatFormat, IntFormat
from qdiffjax.quant.formats import nf4
from qdiffjax.quant.grids import is_affine
from qdiffjax.sites import Site, stored_elements

# Names that qwix gives to types of numbers.
QWIX_FORMATS: dict[str, Any] = {"float8_e4m3fn": E4M3FN, "float8_e5m2": E5M2, "nf4": nf4()}
MODULE_PATH = "module_path"
_WORDS = ("weight_qtype", "act_qtype")
_METHODS = ("weight_calibration_method", "act_calibration_method")
_STATIC = "act_static_scale"
# Fields of a rule that mean nothing where they are as they come.
_PLAIN: dict[str, tuple] = {"op_names": (None, ()), "sparsity_rule": (None,),
                            "act_batch_axes": (None, (0,))}  # fmt: skip


def differences(
    before: Recipe,
    after: Recipe,
    sites: Sequence[Site],
    *,
    predicted: tuple[float, float] | None = None,
) -> Table:
    """Return a table of the sites at which two recipes differ, and what their weights take.

    Bytes are those of the weights and their scales at the steps that no phase names. Bits are their
    mean over weights.

    Args:
      before, after: recipes; of words `spelled_out` makes one.
      sites: of the network.
      predicted: RMSE of the samples before and after, as of `measures.predict`, to be told too.
    """
    for recipe in (before, after):
        check_type("recipe", recipe, Recipe, remedy="spelled_out(calibration, 'W4A8')")
        check_recipe(recipe, sites)
    rows = []
    for name in dict.fromkeys((*before.names, *after.names)):
        texts = [_text(recipe, name) for recipe in (before, after)]
        if texts[0] != texts[1]:
            rows.append((name, *texts))
    sizes = [weight_bytes(recipe, sites) for recipe in (before, after)]
    num = sum(stored_elements([s for s in sites if s.weight is not None]))
    megabytes = [number(size / BYTES) for size in sizes]
    bits = [number(8 * size / max(num, 1)) for size in sizes]
    notes = [f"Weights take {megabytes[0]} MB before, {megabytes[1]} MB after: "
             f"{bits[0]} and {bits[1]} bits each."]  # fmt: skip
    if predicted is not None:
        first, second = predicted
        check_number("predicted", first, above=0)
        notes.append(f"RMSE of the samples, predicted: {number(first)} before, {number(second)} "
                     f"after, {number(second / first)} times.")  # fmt: skip
    return Table("What differs", ("site", "before", "after"), tuple(rows), tuple(notes))


def _text(recipe: Recipe, name: str) -> str:
    first, *others = (f"W {width(b.weight)} A {width(b.activation)}" for b in recipe.choices(name))
    told = [first]
    for phase, text in zip(recipe.phases, others, strict=True):
        if text != first:
            told.append(f"steps {steps_text(phase.steps)}: {text}")
    return "; ".join(told)


def weight_bytes(recipe: Recipe, sites: Sequence[Site]) -> float:
    """Return the bytes of all weights and their scales, each parameter once; see `weight_bits`."""
    products = [s for s in sites if s.weight is not None]
    bits = [weight_bits(s, recipe.bits.get(s.name, SiteBits()).weight) for s in products]
    shares = [n / max(s.parameters, 1)
              for s, n in zip(products, stored_elements(products), strict=True)]  # fmt: skip
    return sum(share * b / 8 for share, b in zip(shares, bits, strict=True))


def skipped(recipe: Recipe, sites: Sequence[Site]) -> list[str]:
    """Return the modules whose weights stay in full precision at all steps, each once.

    As `modules_to_not_convert` of diffusers and transformers, or a list of layers to skip. A module
    that is used several times is one, and is rounded where one of its uses is.
    """
    check_recipe(recipe, sites)
    return [module for module, names in _modules(sites).items()
            if all(b.weight is None for name in names for b in recipe.choices(name))]  # fmt: skip


def to_qwix(recipe: Recipe, sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Return the keyword arguments of one `qwix.QuantizationRule` for each kind of site.

    Products of activations are no modules, and are left out; so is what a rule cannot say.

    Raises:
      ValueError: a recipe by step, a module whose weights or uses differ, or a format that qwix has
        no name for.
    """
    check_recipe(recipe, sites)
    require(not recipe.phases, "recipe", got="one by step", expected="one for all steps",
            remedy="export Recipe(table) of each of recipe.tables")  # fmt: skip
    groups: dict[SiteBits, list[str]] = {}
    for module, uses in _modules(sites).items():
        first, *others = (recipe.bits.get(name, SiteBits()) for name in uses)
        require(all(bits == first for bits in others), module,
                got=f"weights or uses that differ: {', '.join(uses)}",
                expected="one rounding, since the first rule that matches a module counts",
                remedy="round them alike")  # fmt: skip
        if first != SiteBits():
            groups.setdefault(first, []).append(module)
    rules = []
    for bits, names in groups.items():
        rule: dict[str, Any] = {MODULE_PATH: "|".join(map(re.escape, names))}
        for word, method, entry in zip(_WORDS, _METHODS, bits, strict=True):
            if entry is not None:
                rule[word] = _qwix_type(entry)
                if _has_zero_point(entry, word == _WORDS[1]):
                    rule[method] = "minmax"
        if getattr(bits.activation, "scales", None) in (STATIC, DYNAMIC):
            rule[_STATIC] = bits.activation.scales == STATIC
        size = getattr(bits.weight, "granularity", None)
        if isinstance(size, int):
            rule["tile_size"] = size
        rules.append(rule)
    return rules


def from_qwix(rules: Iterable[Any], sites: Sequence[Site]) -> Recipe:
    """Return the recipe that qwix's rules mean; the first that matches a module counts.

    As in qwix integers are symmetric unless a method of calibration is "minmax".

    Args:
      rules: of `qwix.QuantizationRule`, or their keyword arguments: module_path, weight_qtype,
        act_qtype, tile_size, the methods "absmax" and "minmax", act_static_scale; others are
        refused if they say something.
      sites: of the network.

    Raises:
      ValueError: a rule that matches no module, or says what is not known here.
    """
    table: dict[str, SiteBits] = {}
    modules = _modules(sites)
    for rule in map(_fields, rules):
        for module in _matched(rule.get(MODULE_PATH, ".*"), modules):
            table = dict.fromkeys(modules[module], _bits(rule)) | table
    recipe = Recipe(table)
    check_recipe(recipe, sites)
    return recipe


def to_step_policy(recipe: Recipe, num_calls: int) -> dict[str, Any]:
    """Return `diffusion_step_policy` of a ModelOpt checkpoint's configuration.

    What serving systems read there (quantization_config.runtime, schema 1): activations stay in 16
    bits in the first and the last steps, weights as they are.

    Args:
      recipe: whose phases leave activations in full precision, or 16 bits, at every site that it
        rounds, and weights as at the other steps.
      num_calls: steps of the sampler, one network call each.

    Raises:
      ValueError: phases of another kind, or steps in the middle.
    """
    check_count("num_calls", num_calls)
    which = recipe.which(num_calls)
    for name in recipe.names:
        base, *phases = recipe.choices(name)
        for bits in phases:
            is_wide = bits.activation is None or width_of(bits.activation) == MAX_BITS
            require(bits.weight == base.weight and is_wide, f"steps of a phase, {name}",
                    got=f"W {width(bits.weight)} A {width(bits.activation)}",
                    expected=f"W {width(base.weight)} and activations in 16 bits or in full",
                    remedy="a step policy says no more")  # fmt: skip
    plain = [i for i in range(num_calls) if not which[i]]
    first, last = (plain[0], num_calls - 1 - plain[-1]) if plain else (num_calls, 0)
    require(len(plain) == num_calls - first - last, "steps of the phases",
            got=steps_text(tuple(i for i in range(num_calls) if which[i])),
            expected="the first and the last", remedy="a step policy says no more")  # fmt: skip
    ends = {f"{word}_steps": {"count": count, "mode": "a16"}
            for word, count in (("first", first), ("last", last))}  # fmt: skip
    return {"schema_version": 1, "type": "first_last_n", "index_space": "denoising_loop_iteration",
            "scope": ["transformer"], "default_mode": "native", **ends,
            "overlap": "a16"}  # fmt: skip


def from_step_policy(policy: Mapping[str, Any], recipe: Recipe, num_calls: int) -> Recipe:
    """Return a recipe with activations in full precision at the steps that a policy names.

    Args:
      policy: see `to_step_policy`; fields of other parts of a system, such as `reasoner`, are
        passed over.
      recipe: of all steps, without phases.
      num_calls: steps of the sampler, one network call each.

    Raises:
      ValueError: another schema or mode; a recipe by step.
    """
    check_count("num_calls", num_calls)
    require(not recipe.phases, "recipe", got="one by step", expected="one for all steps",
            remedy="the policy says which steps differ")  # fmt: skip
    for word, value in (("schema_version", 1), ("type", "first_last_n"),
                        ("index_space", "denoising_loop_iteration"),
                        ("default_mode", "native")):  # fmt: skip
        require(policy.get(word) == value, f"policy, {word}", got=repr(policy.get(word)),
                expected=repr(value), remedy="read it by hand")  # fmt: skip
    counts = []
    for word in ("first_steps", "last_steps"):
        window = policy.get(word, {"count": 0, "mode": "a16"})
        require(isinstance(window, Mapping) and window.get("mode") == "a16", f"policy, {word}",
                got=repr(window), expected="a count and the mode 'a16'",
                remedy="read it by hand")  # fmt: skip
        check_count(f"policy, {word}", window.get("count"), least=0)
        counts.append(min(window["count"], num_calls))
    steps = tuple(i for i in range(num_calls) if i < counts[0] or i >= num_calls - counts[1])
    wide = {name: bits._replace(activation=None) for name, bits in recipe.bits.items()}
    return dataclasses.replace(recipe, phases=(Phase(steps, wide),) if steps else ())


def _matched(pattern: str, modules: Iterable[str]) -> list[str]:
    """Return the modules that a pattern matches, or refuse one that matches none."""
    modules = tuple(modules)
    try:
        found = [module for module in modules if re.fullmatch(pattern, module)]
    except re.error as error:
        found, pattern = [], f"{pattern}, no regular expression ({error})"
    require(found, f"rule, {MODULE_PATH}", got=pattern,
            expected=f"a regular expression of some of {len(modules)} modules",
            remedy=suggest(pattern, modules))  # fmt: skip
    return found


def _fields(rule: Any) -> dict[str, Any]:
    """Return the fields of a rule that say something."""
    said = dict(rule) if isinstance(rule, Mapping) else vars(rule)
    known = (MODULE_PATH, *_WORDS, *_METHODS, _STATIC, "tile_size")
    kept = {word: value for word, value in said.items()
            if value is not None and value not in _PLAIN.get(word, ())}  # fmt: skip
    check_names("rule", kept, known)
    for word in _METHODS:
        check_names(f"rule, {word}", (kept.get(word, "absmax"),), ("absmax", "minmax"))
    return kept


def _bits(rule: dict[str, Any]) -> SiteBits:
    size = rule.get("tile_size")
    weight, activation = (_entry(rule.get(word)) for word in _WORDS)
    if rule.get(_METHODS[0]) == "minmax" and isinstance(weight, int):
        weight = OperandFormat(IntFormat(weight, signed=False))
    if size is not None and weight is not None:
        format = IntFormat(weight) if isinstance(weight, int) else weight.format
        weight = OperandFormat(format, size)
    if isinstance(activation, int):
        affine = rule.get(_METHODS[1]) == "minmax"
        if not affine or _STATIC in rule:
            activation = OperandFormat(IntFormat(activation, signed=not affine))
    if activation is not None and _STATIC in rule:
        scales = STATIC if rule[_STATIC] else DYNAMIC
        activation = dataclasses.replace(activation, scales=scales)
    return SiteBits(weight, activation)


def _has_zero_point(entry: Any, is_activation: bool) -> bool:
    """Return whether integers have one: activations of a width alone do, weights do not."""
    return is_affine(entry.format) if isinstance(entry, OperandFormat) else is_activation


def _modules(sites: Sequence[Site]) -> dict[str, list[str]]:
    """Return the sites of each module with a weight, by its path."""
    found: dict[str, list[str]] = {}
    for site in sites:
        if site.weight is not None and not site.is_constant:
            found.setdefault(_module(site), []).append(site.name)
    return found


def _module(site: Site) -> str:
    path = site.weight_path or site.name
    return path.rpartition("/")[0] or path


def _qwix_type(entry: Any) -> str:
    format = entry.format if isinstance(entry, OperandFormat) else IntFormat(entry)
    if isinstance(format, IntFormat):
        return f"int{format.bits}"
    for name, known in QWIX_FORMATS.items():
        if type(known) is type(format) and known == format:
            return name
    is_block = isinstance(format, BlockFormat)
    require(isinstance(format, FloatFormat) and not is_block, "format", got=str(entry),
            expected="integers, floats or nf4",
            remedy="leave its sites out, and name it by a rule of your own")  # fmt: skip
    return f"float{format.bits}_e{format.exponent_bits}m{format.mantissa_bits}"


def _entry(word: Any) -> Any:
    if word is None:
        return None
    text = getattr(word, "__name__", str(word))
    if found := re.fullmatch(r"u?int(\d+)", text):
        return check_bits(int(found[1]), "qtype")
    if text in QWIX_FORMATS:
        return OperandFormat(QWIX_FORMATS[text])
    found = re.fullmatch(r"float\d+_e(\d)m(\d+)", text)
    require(found, "qtype", got=repr(text), expected=f"int4, int8 or one of {[*QWIX_FORMATS]}",
            remedy="name the format by `precision.parse_operand`")  # fmt: skip
    assert found is not None
    return OperandFormat(FloatFormat(int(found[1]), int(found[2])))
