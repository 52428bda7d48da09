"""Roundings that change from call to call, so that their mean over calls is finer than a step."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array, Key
from qdiffjax.quant.formats import Format, IntFormat, is_binary
from qdiffjax.quant.granularity import clipped_steps, compute_dtype, expand
from qdiffjax.quant.qtensor import QTensor

# (call [], fraction [*shape] in [0, 1), phase) -> whether the call takes the upper code [*shape].
ToggleFn = Callable[[Any, Array, Any], Array]

GOLDEN = 0.6180339887498949  # (sqrt 5 - 1) / 2, the rotation whose points are spread most evenly
# Continued fractions that end as the golden ratio's does, so that their points are spread as well.
NOBLE = np.array([1 / (a + 1 / (b + 1 / (c + 1 / (d + GOLDEN))))
                  for a, b, c, d in itertools.product((1, 2), repeat=4)])  # fmt: skip
CELLS = 4096  # of phases, which share a rotation


def sigma_delta(call, fraction: Array, phase: Array) -> Array:
    """Say which calls take the upper code, such that what was lost is made up for at once.

        upper_i = floor((i + 1) f + phase) - floor(i f + phase)

    Error feedback q_i = round(u + r_i), r_{i+1} = u + r_i - q_i of a constant u with fraction f
    and r_0 = phase - 1/2, in closed form: the error of call i is r_i - r_{i+1}, and the sum over
    any number of calls is off by less than a step. With phase uniform every call by itself is an
    unbiased rounding of variance f (1 - f), and Cov(r_i, r_{i+m}) = B_2(frac(m f)) / 2.

    Source: Inose and Yasuda, A unity bit coding method by negative feedback, 1963 (the modulator);
    docs/findings.md for its use along a sampler.
    """
    return jnp.floor((call + 1) * fraction + phase) - jnp.floor(call * fraction + phase) > 0.5


def golden_ratio(call, fraction: Array, phase: Array) -> Array:
    """Say which calls take the upper code: those with frac(phase + i g) < f, g the golden ratio.

    One rotation for all elements, so their errors are alike where their phases are. A sequence of
    low discrepancy: the sum over n calls is off by O(log n) steps. With phase uniform every call
    by itself is unbiased, and two calls share the overlap of two arcs of length f on a circle:

        Cov(upper_i, upper_{i+m}) = max(f - d, 0) + max(f + d - 1, 0) - f^2,   d = frac(m g)
    """
    position = phase + call * GOLDEN
    return position - jnp.floor(position) < fraction


def noble_ratios(call, fraction: Array, phase: Array) -> Array:
    """Say which calls take the upper code: those with frac(phase + i g_k) < f, g_k irrational.

    `golden_ratio` with one of 16 rotations for each element, chosen by the phase, so that elements
    of one phase do not err alike for all calls. Each call by itself is unbiased up to 1 / 4096.
    """
    rotations = jnp.asarray(NOBLE, phase.dtype)
    which = jnp.floor(phase * CELLS).astype(jnp.int32) % len(NOBLE)
    position = phase + call * rotations[which]
    return position - jnp.floor(position) < fraction


def fresh_bits(call, fraction: Array, phase: Key) -> Array:
    """Say which calls take the upper code: each by itself with probability f, phase being a key.

    Stochastic rounding, whose sum over n calls is off by sqrt(n f (1 - f)).
    """
    uniform = jax.random.uniform(jax.random.fold_in(phase, call), fraction.shape, fraction.dtype)
    return uniform < fraction


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("lower", "fraction", "phase", "scale"), meta_fields=("toggle_fn",),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class RoundingSequence:
    """An array whose rounding is a function of the number of the call.

        x_hat_i = scale * (lower + toggle_fn(i, fraction, phase))

    lower: real numbers of the code below, in steps [*shape]; fraction: what is left, in [0, 1);
    phase: [*shape], or a key for `fresh_bits`; scale [*groups].
    """

    lower: Array
    fraction: Array
    phase: Any
    scale: Array
    toggle_fn: ToggleFn = sigma_delta

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.lower.shape

    def at(self, call) -> Array:
        """Return the rounding at a call [], in real units [*shape].

        Raises:
          ValueError: no number of the call.
        """
        _check_call(call)
        call = jnp.asarray(call).astype(self.fraction.dtype if self._is_real else jnp.int32)
        upper = self.toggle_fn(call, self.fraction, self.phase)
        return (self.lower + upper.astype(self.lower.dtype)) * expand(self.scale, self.shape)

    def error(self, call) -> Array:
        """Return what the rounding at a call adds to the array, in real units [*shape]."""
        exact = (self.lower + self.fraction) * expand(self.scale, self.shape)
        return self.at(call) - exact

    def redrawn(self, key: Key) -> "RoundingSequence":
        """Return the same with phases drawn anew, uniform and one for each element."""
        phase = jax.random.uniform(key, self.shape, self.lower.dtype) if self._is_real else key
        return dataclasses.replace(self, phase=phase)

    def mapped(self, fn: Callable[[Array], Array]) -> "RoundingSequence":
        """Return the sequence of an array whose elements fn moves, such as a transpose."""
        phase = fn(self.phase) if self._is_real else self.phase
        scale = fn(jnp.broadcast_to(expand(self.scale, self.shape), self.shape))
        return dataclasses.replace(
            self, lower=fn(self.lower), fraction=fn(self.fraction), phase=phase, scale=scale
        )

    @property
    def _is_real(self) -> bool:
        return not jnp.issubdtype(jnp.asarray(self.phase).dtype, jax.dtypes.prng_key)


def _check_call(call) -> None:
    require(call is not None, "rounding sequence", got="no number of the call",
            expected="which call of the sampler this is",
            remedy="pass per_call=q.calls(steps) to whatever runs the sampler")  # fmt: skip


def rounding_sequence(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    format: Format,
    key: Key,
    toggle_fn: ToggleFn = sigma_delta,
    extra_bits: int | None = None,
) -> RoundingSequence:
    """Return roundings of x to a grid, one for each call, whose mean over calls is x.

    What saturates stays at the end of the grid, at every call.

    Args:
      x: real array [*shape].
      scale: positive steps [*groups]; the shape is the granularity.
      zero_point: integers [*groups], or None for symmetric.
      format: an `IntFormat` of at least 2 bits; its width may be traced.
      key: of the phases, uniform and one for each element.
      toggle_fn: `sigma_delta`, `golden_ratio`, `noble_ratios` or `fresh_bits`.
      extra_bits: k, for fractions that are multiples of 2^-k and phases halfway between them: then
        `sigma_delta` has period 2^k, and a mean that is exactly the rounding of x to steps of
        scale / 2^k. An element is stored in bits + k bits, its phase made up from its place. None
        keeps fractions as they are.

    Raises:
      TypeError: a format that is not of integers.
      ValueError: one bit; extra_bits outside 0..16.
    """
    require(isinstance(format, IntFormat), "format", got=type(format).__name__,
            expected="an IntFormat, whose codes are one step apart", error=TypeError,
            remedy="round other formats once")  # fmt: skip
    require(
        not is_binary(format),
        "format",
        got="1 bit",
        expected="at least 2, a code for zero",
        remedy="IntFormat(2)",
    )
    require(extra_bits is None or 0 <= extra_bits <= 16, "extra_bits", got=extra_bits,
            expected="0..16, or None",
            remedy="None keeps the fractions as they are")  # fmt: skip
    x, scale = x.astype(compute_dtype(x)), scale.astype(compute_dtype(x))
    steps = clipped_steps(x, scale, zero_point, format)
    if extra_bits is not None:
        steps = jnp.round(steps * 2**extra_bits) / 2**extra_bits
    lower = jnp.floor(steps)
    if toggle_fn is fresh_bits:
        return RoundingSequence(lower, steps - lower, key, scale, toggle_fn)
    if extra_bits is None:
        phase = jax.random.uniform(key, x.shape, x.dtype)
    else:
        place = phases_of_places(seed_of(key), x.shape, extra_bits)
        phase = (place.astype(x.dtype) + 0.5) / 2**extra_bits
    return RoundingSequence(lower, steps - lower, phase, scale, toggle_fn)


def seed_of(key: Key) -> Array:
    """Return 32 random bits of a key, uint32 []."""
    return jax.random.bits(key, (), jnp.uint32)


def phases_of_places(seed: Array, shape: tuple[int, ...], bits: int) -> Array:
    """Return a phase 0 .. 2^bits - 1 for each element, mixed from its place and a seed: int32.

    So that nothing is stored of them. The mixing is the finalizer of MurmurHash3 (Appleby, 2011),
    over the places times the golden ratio.
    """
    size = math.prod(shape)
    h = (jnp.arange(size, dtype=jnp.uint32) + seed) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    h = h ^ (h >> 16)
    if bits == 0:
        return jnp.zeros(shape, jnp.int32)
    return (h >> (32 - bits)).astype(jnp.int32).reshape(shape)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("fine", "seed", "scale"), meta_fields=("format", "extra_bits"),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class AlternatingCodes:
    """Codes of `format.bits` bits that alternate from call to call, stored in extra_bits more.

        q_i = floor(((i + 1) n + j) / 2^k) - floor((i n + j) / 2^k),   n = round(2^k x / scale)

    `rounding_sequence` of `sigma_delta` in integers: the sum over 2^k calls is n itself.

    fine: n, of bits + k bits, whole bytes [*shape]; seed: of the phases j, made up from the places
    at every call; scale [*groups].
    """

    fine: Array
    seed: Array
    scale: Array
    format: IntFormat
    extra_bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.fine.shape

    def at(self, call) -> QTensor:
        """Return the codes at a call [].

        Raises:
          ValueError: no number of the call.
        """
        _check_call(call)
        n, i = self.fine.astype(jnp.int32), jnp.asarray(call).astype(jnp.int32)
        before = i * n + phases_of_places(self.seed, self.shape, self.extra_bits)
        codes = ((before + n) >> self.extra_bits) - (before >> self.extra_bits)
        return QTensor(codes.astype(self.format.storage_dtype), self.scale, None, self.format)


def alternating_codes(
    x: Array, scale: Array, *, format: IntFormat, key: Key, extra_bits: int
) -> AlternatingCodes:
    """Return the codes of `rounding_sequence` with as many extra bits, bit for bit.

    Args:
      x: real array [*shape].
      scale: positive steps [*groups].
      format: a symmetric `IntFormat` of static width, at least 2 bits.
      key: of the phases.
      extra_bits: k; bits + k is at most 16, and (number of calls) 2^(bits + k) below 2^31.

    Raises:
      ValueError: widths outside of these.
    """
    require(format.is_static and format.bits >= 2 and format.bits + extra_bits <= 16 and
            extra_bits >= 0, "alternating codes", got=f"{format.bits} + {extra_bits} bits",
            expected="a static width of 2 or more, 16 at most with the extra bits",
            remedy="store fewer bits of the fraction")  # fmt: skip
    x, scale = x.astype(compute_dtype(x)), scale.astype(compute_dtype(x))
    steps = clipped_steps(x, scale, None, format)
    small = jnp.int8 if format.bits + extra_bits <= 8 else jnp.int16
    fine = jnp.round(steps * 2**extra_bits).astype(small)
    return AlternatingCodes(fine, seed_of(key), scale, format, extra_bits)
