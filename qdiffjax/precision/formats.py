"""How the numbers of one operand are rounded, as a record and in words.

4            integers of 4 bits, by the defaults of the operand
:e4m3        a number format by name: see `FORMATS` and `NUMBERED`, such as :e3m4 or :pot4
:nvfp4       a block format
4g32         groups of 32 neighbours along what is summed
8 token      words after it: a granularity, scales (`dynamic`, `static`, `by-step`, `4-ranges`),
a calibration, a rounding,
`symmetric` or `affine`
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qdiffjax import quant
from qdiffjax._checks import check_names, concrete, require, suggest
from qdiffjax.quant import MAX_BITS, MIN_BITS, BlockFormat, Format, IntFormat, ToggleFn
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.grids import is_affine

FORMATS: dict[str, Any] = {
    "e4m3": quant.E4M3FN, "e5m2": quant.E5M2, "e4m3b11": quant.E4M3B11FNUZ, "fp4": quant.E2M1,
    "fp16": quant.FP16, "bf16": quant.BF16, "tf32": quant.TF32, "nf4": quant.nf4(),
    "binary": IntFormat(1), "ternary": quant.CodebookFormat((-1.0, 0.0, 1.0)),
    "mxfp8": quant.MXFP8_E4M3, "mxfp8_e5m2": quant.MXFP8_E5M2, "mxfp6": quant.MXFP6_E2M3,
    "mxfp6_e3m2": quant.MXFP6_E3M2, "mxfp4": quant.MXFP4, "mxint8": quant.MXINT8,
    "nvfp4": quant.NVFP4, "msfp12": quant.block_float(3, 16), "msfp16": quant.block_float(7, 16),
}  # fmt: skip
# Names with numbers, and what they mean: exponent and mantissa bits, powers of 2 and of its root
# (unsigned for what a softmax leaves), codebooks of least squares for Gaussian numbers, mantissas
# under one exponent for 16 neighbours, integers in blocks with a scale of 16 bits.
NUMBERED: dict[str, Callable[..., Any]] = {
    r"e(\d)m(\d+)": quant.FloatFormat,
    r"pot(\d)": lambda bits: quant.LogFormat(bits, 1.0, signed=True),
    r"upot(\d)": lambda bits: quant.LogFormat(bits, 1.0),
    r"root(\d)": lambda bits: quant.LogFormat(bits, 0.5, signed=True),
    r"uroot(\d)": lambda bits: quant.LogFormat(bits, 0.5),
    r"lloyd([1-8])": quant.lloyd_max,
    r"bfp(\d+)": lambda mantissa_bits: quant.block_float(mantissa_bits, 16),
    r"int(\d+)b(\d+)": lambda bits, size: BlockFormat(
        IntFormat(bits), size, quant.absmax_scale, 16
    ),
}
CALIBRATIONS: dict[str, Callable] = {
    "absmax": quant.absmax, "minmax": quant.minmax, "mse": quant.mse,
    "percentile": quant.percentile, "kl": quant.kl, "gaussian": quant.gaussian_clip,
    "laplace": quant.laplace_clip,
}  # fmt: skip
# Rules of symmetric grids alone, and those that are asked for one or the other.
SYMMETRIC = (quant.absmax, quant.kl, quant.gaussian_clip, quant.laplace_clip)
EITHER = (quant.lp, quant.mse, quant.percentile)
NEAREST, SUMS, STOCHASTIC, SHAPED = "nearest", "sums", "stochastic", "shaped"
DIFFERENCE = "difference"
SEQUENCES: dict[str, ToggleFn] = {SHAPED: quant.sigma_delta, "golden": quant.golden_ratio,
                                  "noble": quant.noble_ratios,
                                  "fresh": quant.fresh_bits}  # fmt: skip
FULL_BITS = 32  # of a float32, and of a weight that is rounded anew at every call
ROUNDINGS = (NEAREST, SUMS, STOCHASTIC, DIFFERENCE, *SEQUENCES)
TENSOR, CHANNEL, TOKEN = "tensor", "channel", "token"
GRANULARITIES = (TENSOR, CHANNEL, TOKEN)
DYNAMIC, STATIC, BY_STEP = "dynamic", "static", "by-step"
SCALES = (DYNAMIC, STATIC, BY_STEP)
BY_RANGE = r"([1-9]\d*)-ranges"  # a scale for each of so many equal ranges of calls
_FIELDS = {
    **dict.fromkeys(GRANULARITIES, "granularity"), **dict.fromkeys(SCALES, "scales"),
    **dict.fromkeys(CALIBRATIONS, "calibration"), **dict.fromkeys(ROUNDINGS, "rounding"),
    **dict.fromkeys(("symmetric", "affine"), "sign"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OperandFormat:
    """How the numbers of one operand are rounded; None leaves a choice to `quantize`.

    Attributes:
      format: any number format of `quant`, or a `BlockFormat`; or your own, a frozen dataclass with
        what `quant.Format` asks for, registered by `jax.tree_util.register_static`, and with a
        `name`, or one in `FORMATS`, if it is to be written. Unsigned integers make an affine grid,
        with a zero point.
      granularity: which numbers share a scale: "tensor"; "channel", each output channel of a
        weight; "token", each row of an activation, each sample at a convolution or an edge; or an
        int, groups of so many neighbours along what is summed. A block format has its own.
      scales: of an activation: "dynamic", from the data at hand; "static", from calibration; or
        "by-step", static and one for each call of the sampler; or, such as "4-ranges", for each of
        so many equal ranges of its calls.
      calibration: of a weight, name in `CALIBRATIONS` or a function such as `quant.mse`; of a grid
        with a zero point one that finds it. A block format has its own.
      rounding: "nearest"; "sums", to nearest such that the sum of each output channel of a weight
        stays; "stochastic"; "difference", of an activation to what the call before had rounded; and
        anew at every call of the sampler, "shaped" (weights by sigma-delta
        sequences, activations by error feedback) or, of weights, "golden" or "fresh".

    Raises:
      TypeError: no number format.
      ValueError: a word that is none of these, or one that does not fit the others.

    Example:
      >>> from qdiffjax import precision, quant
      >>> str(precision.OperandFormat(quant.NVFP4))
      ':nvfp4'
      >>> precision.parse_operand("4g32 mse").granularity
      32
    """

    format: Any
    granularity: Any = None
    scales: str | None = None
    calibration: str | Callable | None = None
    rounding: str | None = None

    def __post_init__(self):
        if not isinstance(self.format, BlockFormat):
            check_number_format("format", self.format)
        size = self.granularity
        is_size = isinstance(size, int) and not isinstance(size, bool)
        require(size in (None, *GRANULARITIES) or (is_size and size >= 1), "granularity",
                got=repr(size), expected=f"one of {GRANULARITIES} or the size of a group",
                remedy="None takes the default")  # fmt: skip
        require(size is None or not isinstance(self.format, BlockFormat), "granularity",
                got=f"{size!r} for a block format", expected="None",
                remedy="its blocks are its granularity")  # fmt: skip
        for what, value, known in (("scales", self.scales, SCALES),
                                   ("rounding", self.rounding, ROUNDINGS)):  # fmt: skip
            if value is not None and _num_ranges(value) is None:
                check_names(what, (value,), known)
        if self.calibration is not None and not callable(self.calibration):
            check_names("calibration", (self.calibration,), CALIBRATIONS)
        if self.calibration is not None:
            rule_for(self.calibrate_fn, self.format)
        is_shared = size not in (None, TENSOR)
        require(not (self.is_static and isinstance(self.format, BlockFormat)), "scales",
                got=f"{self.scales} for a block format", expected="'dynamic' or None",
                remedy="its blocks find their own scales: leave the word out")  # fmt: skip
        require(not (self.is_static and is_shared), "granularity",
                got=f"{size!r} with {self.scales} scales", expected=f"{TENSOR!r}",
                remedy="a scale by token or group is found at run time: 'dynamic'")  # fmt: skip

    @property
    def bits(self) -> Any:
        """Width of one stored number, the scales of a block format included."""
        return self.format.bits

    @property
    def stored_bits(self) -> Any:
        """Bits stored for a number of a weight: that of a sequence is stored as itself, in 32.

        What it saves is arithmetic. Codes that alternate with period 2^k take k bits more than one
        rounding, see `shaped`.
        """
        return FULL_BITS if self.is_anew else self.bits

    @property
    def is_anew(self) -> bool:
        """Whether a weight is rounded anew at every call."""
        return self.rounding in SEQUENCES

    @property
    def is_static(self) -> bool:
        """Whether the scales of an activation are those of calibration."""
        return self.scales not in (None, DYNAMIC)

    def num_ranges(self, num_calls: int) -> int:
        """Return how many static scales an activation has along a sampler of so many calls.

        Raises:
          ValueError: more of them than calls.
        """
        num = num_calls if self.scales == BY_STEP else _num_ranges(self.scales) or 1
        require(num <= num_calls, "scales", got=f"{num} ranges of {num_calls} calls",
                expected="at least a call in each", remedy=f"{BY_STEP!r} is the most")  # fmt: skip
        return num

    @property
    def calibrate_fn(self) -> Callable:
        """Return the function that finds the scales of a weight."""
        if self.calibration is None:
            return quant.minmax if is_affine(self.format) else quant.absmax
        return self.calibration if callable(self.calibration) else CALIBRATIONS[self.calibration]

    def __str__(self):
        return self.words()

    def words(self, formats: Mapping[str, Any] | None = None) -> str:
        """Return what `parse_operand` reads with the same further formats."""
        name = _name(self.format, formats or {})
        size = f"g{self.granularity}" if isinstance(self.granularity, int) else ""
        words = [name + size]
        if isinstance(self.format, IntFormat):
            words += ["symmetric" if self.format.signed else "affine"]
        words += [self.granularity] if isinstance(self.granularity, str) else []
        calibration = self.calibration
        if callable(calibration):
            calibration = getattr(calibration, "__name__", "own calibration")
        return " ".join([*words, *filter(None, (self.scales, calibration, self.rounding))])


def is_grouped(entry: Any) -> bool:
    """Return whether neighbours share a scale under an entry of a recipe: groups or blocks."""
    return isinstance(entry, OperandFormat) and (
        isinstance(entry.granularity, int) or isinstance(entry.format, BlockFormat)
    )


def leaves_scales(entry: Any) -> bool:
    """Return whether an entry of a recipe leaves its scales to the options of `quantize`."""
    if not isinstance(entry, OperandFormat):
        return entry is not None
    return entry.calibration is None and not isinstance(entry.format, BlockFormat)


def rule_for(calibrate_fn: Callable, format: Any) -> Callable:
    """Return a rule of scales as it finds those of a format: with a zero point if that has one.

    Raises:
      ValueError: a format that has scales of its own; a rule without zero points for one with them.
    """
    fn = getattr(calibrate_fn, "func", calibrate_fn)
    name = repr(getattr(fn, "__name__", "own calibration"))
    require(not isinstance(format, BlockFormat), "calibration", got=f"{name} for a block format",
            expected="none", remedy="its blocks find their own scales: leave it out")  # fmt: skip
    if not is_affine(format):
        return calibrate_fn
    require(fn not in SYMMETRIC, "calibration", got=f"{name} of a grid with a zero point",
            expected="a rule that finds zero points",
            remedy="'minmax', 'mse' or 'percentile', or a symmetric grid")  # fmt: skip
    said = getattr(calibrate_fn, "keywords", {})
    return _affine(calibrate_fn) if fn in EITHER and "symmetric" not in said else calibrate_fn


@functools.lru_cache(maxsize=64)
def _affine(calibrate_fn: Callable) -> Callable:
    return functools.partial(calibrate_fn, symmetric=False)  # the same object, the same program


def check_bits(bits: int | None, what: str = "bits") -> int | None:
    """Return `bits` if it is a width, traced, or None; raise ValueError otherwise."""
    values = None if bits is None else concrete(bits)
    require(
        values is None or (values.dtype.kind in "iu" and bool(
            np.all((values >= MIN_BITS) & (values <= MAX_BITS))
        )), what, got=f"{bits!r} bits", expected=f"{MIN_BITS}..{MAX_BITS}, or none for float",
        remedy="wider formats are not quantized at all",
    )  # fmt: skip
    return bits


def width_of(entry: Any) -> Any:
    """Return the bits of an entry of a recipe: a width as it is, that of a format, or None."""
    return entry.bits if isinstance(entry, OperandFormat) else entry


def parse_operand(
    text: str, formats: Mapping[str, Format] | None = None, *, signed: bool = True
) -> OperandFormat:
    """Read how an operand is rounded, such as "4g32 mse" or ":e4m3 token".

    Args:
      text: see the words above.
      formats: further formats by name, your own.
      signed: whether integers that say neither are symmetric, not affine.

    Raises:
      ValueError: words that are not known (the nearest is named), or do not fit together.
    """
    first, *words = text.strip().lower().split() or [""]
    found = re.fullmatch(r"(?:(\d+)|:([a-z][a-z0-9_]*?))(?:g(\d+))?", first)
    require(found, "recipe, format", got=repr(first), expected="a form like W4A8, W4g32 or W:e4m3",
            remedy="bits or the name of a format come first, groups last")  # fmt: skip
    assert found is not None
    bits, name, group = found.groups()
    fields: dict[str, Any] = {"granularity": int(group)} if group else {}
    check_names("words of a format", (w for w in words if _num_ranges(w) is None), _FIELDS)
    for word in words:
        field = _FIELDS.get(word, "scales")
        require(field not in fields, "words of a format", got=repr(text),
                expected=f"one {field}", remedy="delete the others")  # fmt: skip
        fields[field] = word
    sign = fields.pop("sign", None)
    require(bits or sign is None, "words of a format", got=repr(text),
            expected=f"integers beside {sign!r}",
            remedy="other formats are symmetric as they are")  # fmt: skip
    if bits:
        check_bits(int(bits))
        format: Any = IntFormat(int(bits), signed=sign == "symmetric" if sign else signed)
    else:
        format = _format_of(name, formats or {})
    return OperandFormat(format, **fields)


def _num_ranges(word: Any) -> int | None:
    found = re.fullmatch(BY_RANGE, word) if isinstance(word, str) else None
    return int(found[1]) if found else None


def _format_of(name: str, own: Mapping[str, Any]) -> Any:
    known = {**FORMATS, **own}
    if name not in known and (found := _numbered(name)) is not None:
        return found
    require(name in known, "format", got=repr(name), expected=f"one of {len(known)} names",
            remedy=f"{suggest(name, [*known])}; one of your own: formats={{{name!r}: ...}} where "
            f"files are read, or precision.FORMATS[{name!r}] = ... everywhere")  # fmt: skip
    return known[name]


def _numbered(name: str) -> Any:
    """Return the format that a name with numbers means; None where it means none."""
    for pattern, make in NUMBERED.items():
        if found := re.fullmatch(pattern, name):
            return make(*map(int, found.groups()))
    return None


def _name(format: Any, own: Mapping[str, Any]) -> str:
    """Write a format as `parse_operand` reads it, or by the name of its class."""
    if isinstance(format, IntFormat):
        return str(format.bits) if format.is_static else "?"
    for name, known in {**FORMATS, **own}.items():
        if type(known) is type(format) and known == format:
            return f":{name}"
    numbered = _numbers_of(format) if format.is_static else None
    is_float = isinstance(format, quant.FloatFormat)  # whatever its kind: told, if not written
    if numbered is not None and (is_float or _numbered(numbered) == format):
        return f":{numbered}"
    return f":{getattr(format, 'name', type(format).__name__)}"


def _numbers_of(format: Any) -> str | None:
    """Return the name with numbers that a format may have; None for another kind."""
    if isinstance(format, quant.FloatFormat):
        return f"e{format.exponent_bits}m{format.mantissa_bits}"
    if isinstance(format, quant.LogFormat):
        step = "pot" if format.base_exponent == 1 else "root"
        return f"{'' if format.signed else 'u'}{step}{format.bits}"
    if isinstance(format, quant.CodebookFormat):
        return f"lloyd{format.bits}"
    if not isinstance(format, BlockFormat) or not isinstance(format.element, IntFormat):
        return None
    if format.scale_fn is quant.absmax_scale:
        return f"int{format.element.bits}b{format.block_size}"
    return f"bfp{format.element.bits - 1}"
