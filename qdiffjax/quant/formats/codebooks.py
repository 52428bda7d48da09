"""Number formats given by a list of levels: any, fixed (NF4), fitted or learned."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_numbers, require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats.base import format_pytree
from qdiffjax.quant.granularity import concrete_all

MAX_LEVELS = 2**16
FEW_LEVELS = 32  # up to here comparing with every level is faster than bisection
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@format_pytree("values")
@dataclasses.dataclass(frozen=True)
class CodebookFormat:
    """Any ascending levels, in units of the scale; the code of a level is its index.

        round(v) = values[j],   j = argmin_j |v - values[j]|,   a tie to the even j

    decided exactly: midpoints are compared in twice the precision. A rounding other than
    `nearest_even` acts on the fractional index between the neighbours of v,

        j = round_fn(i + (v - values[i]) / (values[i + 1] - values[i])),

    to within eps of the fraction; it must return integers. The fraction is linear in v, so
    stochastic rounding has no bias in value.

    Hashable (so usable as a static argument) if given as numbers or a numpy array; levels in a
    jax.Array are data, so that a sweep over codebooks of one size compiles once. Binary and
    ternary are CodebookFormat((-1, 1)) and CodebookFormat((-1, 0, 1)).

    Attributes:
      values: the levels [n], 2 <= n <= 2^16, finite and distinct as float32.

    Raises:
      TypeError: an array that is not real.
      ValueError: too few or too many levels, or concrete ones that do not ascend.
    """

    values: Any

    def __post_init__(self):
        check_numbers("levels, values", self.values, least_rank=1, finite=False)
        if not isinstance(self.values, jax.Array):
            values = np.asarray(self.values, np.float64)
            object.__setattr__(self, "values", tuple(values.tolist()) if values.ndim == 1 else ())
        _check_levels(self.values)

    @property
    def is_static(self) -> bool:
        """Whether the levels are a tuple of floats, known before tracing."""
        return isinstance(self.values, tuple)

    @property
    def bits(self) -> int:
        """Width of one stored index: ceil(log2 n)."""
        return (len(self.values) - 1).bit_length()

    @property
    def low(self) -> Any:
        """Smallest level."""
        return self.values[0]

    @property
    def high(self) -> Any:
        """Largest level."""
        return self.values[-1]

    @property
    def storage_dtype(self) -> np.dtype:
        """Smallest whole-byte unsigned dtype that holds every index."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    def round(self, v: Array, round_fn: rounding.RoundFn) -> Array:
        """Return level chosen for v [*shape]; NaN stays, and the ends are those of the codebook."""
        levels = _as_array(self.values, v.dtype)
        return jnp.where(jnp.isnan(v), v, levels[level_index(v, levels, round_fn)])

    def encode(self, values: Array) -> Array:
        """Return index [*shape], in storage_dtype, of the level nearest to each value [*shape]."""
        index = _nearest_index(values, _as_array(self.values, values.dtype))
        return index.astype(self.storage_dtype)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the levels [*shape] of indices [*shape]."""
        return _as_array(self.values, dtype)[codes.astype(jnp.int32)]

    def levels(self) -> np.ndarray:
        """Return the levels, ascending, float64 [n]; static formats only."""
        return np.asarray(self.values, np.float64)


def nf4() -> CodebookFormat:
    """Return the 4-bit NormalFloat codebook, its 16 float32 constants as published.

        positive: Phi^-1(linspace(1/2, p, 9)),   negative: -Phi^-1(linspace(1/2, p, 8)),
        divided by Phi^-1(p),   p = (1 - 1/30 + 1 - 1/32) / 2 = 0.9677083

    so that zero and both ends are levels and there is one more positive than negative one. In
    float64 the formula gives the constants to 1.1e-7; the rest is their authors' float32.
    Dettmers et al. 2023 (QLoRA), section 3 and appendix E. Scale: absmax.
    """
    return CodebookFormat(NF4_LEVELS)


def _as_array(values, dtype) -> Array:
    # An array is cast, a tuple of float64 rounded once.
    return values.astype(dtype) if isinstance(values, jax.Array) else jnp.asarray(values, dtype)


def level_index(v: Array, levels: Array, round_fn: rounding.RoundFn) -> Array:
    """Return the index [*shape] of the level [n] chosen for v [*shape]; anything for NaN."""
    if round_fn is rounding.nearest_even:
        return _nearest_index(v, levels)
    return _rounded_index(v, levels, round_fn)


def _nearest_index(v, levels):
    num_gaps = levels.size - 1
    middle, rest = _midpoints(levels)
    below = _count(middle, v, side="left")
    goes_up = (rest < 0) | ((rest == 0) & (jnp.arange(num_gaps) % 2 == 1))
    gap = jnp.minimum(below, num_gaps - 1)
    return below + ((middle[gap] == v) & goes_up[gap]).astype(jnp.int32)


def _midpoints(levels):
    """Return the midpoints of neighbours as an unevaluated sum (rounded, rest), both [n - 1]:
    Knuth's sum.
    """
    a, b = levels[:-1] / 2, levels[1:] / 2
    # The barrier keeps a compiler that knows the levels from "simplifying" the rest to zero.
    middle = jax.lax.optimization_barrier(a + b)
    b_seen = jax.lax.optimization_barrier(middle - a)
    return middle, (a - (middle - b_seen)) + (b - b_seen)


def _rounded_index(v, levels, round_fn):
    eps = jnp.finfo(v.dtype).eps
    i = jnp.clip(_count(levels, v, side="right") - 1, 0, levels.size - 2)
    a, b = levels[i], levels[i + 1]
    fraction = jnp.where(v >= b, jnp.ones_like(v), jnp.clip((v - a) / (b - a), 0, 1 - eps))
    # Only the parity of i matters to a rounding; without the rest no digit of fraction is lost.
    parity = (i % 2).astype(v.dtype)
    steps = round_fn(parity + fraction) - parity
    return jnp.clip(i + steps.astype(jnp.int32), 0, levels.size - 1)


def _count(sorted_values, v, *, side):
    """Count how many of sorted_values [n] lie below v [*shape] (or at it, if side is right)."""
    method = "compare_all" if sorted_values.size <= FEW_LEVELS else "scan"
    return jnp.searchsorted(sorted_values, v, side=side, method=method).astype(jnp.int32)


def _ascends(a):
    return (a[1:] > a[:-1]).all() & (abs(a) < np.inf).all()


def _check_levels(values) -> None:
    is_data, shape = isinstance(values, jax.Array), np.shape(values)
    require(
        not is_data or jnp.issubdtype(values.dtype, jnp.floating), "levels, values",
        got=getattr(values, "dtype", None), expected="a real floating dtype", remedy="cast first",
        error=TypeError,
    )  # fmt: skip
    require(
        len(shape) == 1 and 2 <= shape[0] <= MAX_LEVELS, "levels, values", got=f"shape {shape}",
        expected=f"[n] with n in 2..{MAX_LEVELS}", remedy="use vmap for several codebooks",
    )  # fmt: skip
    require(
        concrete_all(_ascends, values) if is_data else _ascends(np.float32(values)),
        "levels, values", got=values, expected="finite numbers that ascend strictly as float32",
        remedy="sort them and drop duplicates (jnp.unique)",
    )  # fmt: skip
