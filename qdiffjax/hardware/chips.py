"""Chips as data: how fast they multiply what, how fast they read memory, and how much they hold.

Rates are dense peaks in operations a second, two for each multiply-accumulate. The format that a
chip multiplies is named as in FORMATS; a product of narrower codes runs in the next one it has.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from qdiffjax._checks import check_count, check_number, check_type, require

GIBI = 2**30
# Narrowest first: what each family of codes can be multiplied as.
INTEGER, FLOAT = ("int4", "int8"), ("f8",)
FULL = {16: ("bf16", "f32"), 32: ("f32",)}
FORMATS = (*INTEGER, *FLOAT, "bf16", "f32")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a roofline needs to know of a machine.

    Attributes:
      name: of the chip.
      rates: format -> peak operations a second; only what the chip multiplies itself.
      bandwidth: of its memory, bytes a second.
      capacity: of its memory, bytes; infinity where it is not known.
      power: at most, watts; None where the vendor does not say.
      estimated: formats whose rate is no vendor's number.
      source: of the numbers.
    """

    name: str
    rates: Mapping[str, float]
    bandwidth: float
    capacity: float
    power: float | None = None
    estimated: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self):
        require(
            set(self.rates) <= set(FORMATS) and "f32" in self.rates, f"rates of {self.name}",
            got=list(self.rates),
            expected=f"some of {list(FORMATS)}, f32 among them",
            remedy="count operations a second by format",
        )  # fmt: skip
        for name, rate in self.rates.items():
            check_number(f"rates of {name}", rate, above=0)
        check_number("bandwidth", self.bandwidth, above=0)
        if self.capacity != math.inf:
            check_number("capacity", self.capacity, above=0)


def _hopper(name, bandwidth, capacity, source):
    # Dense tensor-core peaks at the boost clock. f32 is that of the vector units, as for JAX's
    # "highest" precision; TF32 (494.7e12) keeps 11 significant bits. Hopper has no int4.
    rates = {"int8": 1978.9e12, "f8": 1978.9e12, "bf16": 989.4e12, "f32": 66.9e12}
    return Chip(name, rates, bandwidth, capacity, 700.0, (), source)


H100 = _hopper("H100", 3.35e12, 80e9, "NVIDIA H100 SXM5 datasheet; Hopper architecture whitepaper")
H200 = _hopper("H200", 4.8e12, 141e9, "NVIDIA H200 SXM datasheet")
A100 = Chip(
    "A100", {"int4": 1248e12, "int8": 624e12, "bf16": 312e12, "f32": 19.5e12}, 2.039e12, 80e9,
    400.0, (), "NVIDIA A100 80 GB SXM datasheet. XLA does not use its int4 units.",
)  # fmt: skip

# TPUs multiply float32 in passes of bfloat16. The f32 rates are those of JAX's precision "highest",
# by the ratio to bf16 of a 4096^3 product in the compiler's own schedule (estimates).
_CLOUD = "Google Cloud TPU documentation, {}; f32 estimated from compiled schedules"
V4 = Chip(
    "v4", {"int8": 275e12, "bf16": 275e12, "f32": 0.18 * 275e12}, 1.2e12, 32 * GIBI, 192.0,
    ("f32",), _CLOUD.format("v4 (275 TFLOPS bf16 or int8; 90 to 192 W)"),
)  # fmt: skip
V5E = Chip(
    "v5e", {"int8": 393e12, "bf16": 197e12, "f32": 0.17 * 197e12}, 819e9, 16e9, None,
    ("f32",), _CLOUD.format("v5e"),
)  # fmt: skip
V5P = Chip(
    "v5p", {"int8": 1.98 * 459e12, "f8": 459e12, "bf16": 459e12, "f32": 0.16 * 459e12}, 2765e9,
    95 * GIBI, None, ("int8", "f32"), _CLOUD.format("v5p and TPU7x pages")
    + ", int8 as well: 1.98 times bf16",
)  # fmt: skip
V6E = Chip(
    "v6e", {"int8": 1836e12, "f8": 918e12, "bf16": 918e12, "f32": 0.16 * 918e12}, 1638e9, 32e9,
    None, ("f32",), _CLOUD.format("v6e and TPU7x pages; compiled schedules reach 1.33 times bf16 "
                                  "with int8, not 2"),
)  # fmt: skip
V7X = Chip(
    "v7x", {"int8": 0.98 * 2307e12, "f8": 4614e12, "bf16": 2307e12, "f32": 0.17 * 2307e12},
    7380e9, 192 * GIBI, None, ("int8", "f32"), _CLOUD.format("TPU7x, of both chiplets")
    + ", int8 as well",
)  # fmt: skip

# Four cores at the base clock with one 512-bit unit each: 16 float32 or, with VNNI, 64 int8
# multiply-accumulates a cycle. Two channels of LPDDR4x-4267: 16 bytes at 4.267e9 a second.
LAPTOP = Chip(
    "laptop", {"int8": 4 * 3.0e9 * 128, "f32": 4 * 3.0e9 * 32}, 16 * 4.267e9, 32e9, 28.0,
    ("int8", "f32"), "Intel Core i7-1185G7: cores, clock and memory from its data sheet, rates "
    "computed from the width of its vector units",
)  # fmt: skip

CHIPS = (H100, H200, A100, V4, V5E, V5P, V6E, V7X, LAPTOP)
# JAX shows each of its two chiplets as a device.
_HALF = dataclasses.replace(
    V7X, name="half a v7x", rates={k: r / 2 for k, r in V7X.rates.items()},
    bandwidth=V7X.bandwidth / 2, capacity=V7X.capacity / 2,
)  # fmt: skip
# What JAX calls them: `device_kind` contains it. "TPU v5 lite" before "TPU v5".
_KINDS = (
    ("H100", H100), ("H200", H200), ("A100", A100), ("TPU v4", V4), ("TPU v5 lite", V5E),
    ("TPU v5e", V5E), ("TPU v5", V5P), ("TPU v6 lite", V6E), ("TPU v6e", V6E), ("TPU7x", _HALF),
)  # fmt: skip


def find_chip(device_kind: str) -> Chip | None:
    """Return the chip that JAX or its vendor calls so; None for one that is not here.

    "TPU v5e" and "v5e" are the chip that JAX calls "TPU v5 lite". A variant with less memory or
    power (PCIe, NVL) is taken for its SXM form. One device of a v7x is half of it.
    """
    require(isinstance(device_kind, str), "device_kind", got=repr(device_kind),
            expected="a name", remedy="jax.devices()[0].device_kind", error=TypeError)  # fmt: skip
    by_name = {chip.name: chip for chip in CHIPS}
    known = next((chip for kind, chip in _KINDS if kind in device_kind), None)
    return known or by_name.get(device_kind)


def check_full(what: str, full: int) -> None:
    """Refuse a width that is none of full precision."""
    require(full in FULL, what, got=repr(full), expected=f"one of {sorted(FULL)}",
            remedy="32 is float32, 16 is bfloat16")  # fmt: skip


def multiplied_as(chip: Chip, bits: int, *, full: int = 32, family=INTEGER) -> str:
    """Return format in which the chip multiplies two operands, the wider of which has `bits` bits.

    The narrowest format of the family that the chip has and that holds the codes; the full
    precision if there is none, as when simulated.

    Args:
      chip: the machine.
      bits: of the wider operand.
      full: width of full precision, 16 or 32.
      family: INTEGER or FLOAT, what codes are.

    Raises:
      ValueError: another full width.
    """
    check_type("chip", chip, Chip, remedy="find_chip(name)")
    check_full("full", full)
    check_count("bits", bits, least=0, most=full)
    require(set(family) <= set(FORMATS), "family", got=family, expected=f"some of {list(FORMATS)}",
            remedy="chips.INTEGER or chips.FLOAT")  # fmt: skip
    holds = {"int4": 4, "int8": 8, "f8": 8}
    fitting = [f for f in family if bits <= holds[f] and bits < full]
    return next(f for f in (*fitting, *FULL[full]) if f in chip.rates)


def rate_table(chip: Chip, *, full: int = 32, family=INTEGER) -> np.ndarray:
    """Return the operations a second of the chip for every width of the wider operand, float64
    [full + 1].

    A table, so that traced widths can look their rate up.
    """
    check_type("chip", chip, Chip, remedy="find_chip(name)")
    check_full("full", full)
    return np.array([
        chip.rates[multiplied_as(chip, bits, full=full, family=family)]
        for bits in range(full + 1)
    ])  # fmt: skip
