"""Number formats given by a list of levels: any, fixed (NF4), fitted or learned."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.granularity import compute_dtype, concrete_all, expand, inverse
from qdiffjax.quant.qtensor import check_arguments

MAX_LEVELS = 2**16
FEW_LEVELS = 32  # up to here comparing with every level is faster than bisection
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


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
        """Level chosen for v [*shape]; NaN stays, and the ends are those of the codebook."""
        levels = _as_array(self.values, v.dtype)
        return jnp.where(jnp.isnan(v), v, levels[_index(v, levels, round_fn)])

    def encode(self, values: Array) -> Array:
        """Index [*shape], in storage_dtype, of the level nearest to each value [*shape]."""
        index = _nearest_index(values, _as_array(self.values, values.dtype))
        return index.astype(self.storage_dtype)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Levels [*shape] of indices [*shape]."""
        return _as_array(self.values, dtype)[codes.astype(jnp.int32)]

    def levels(self) -> np.ndarray:
        """The levels, ascending, float64 [n]; static formats only."""
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


def fake_quant_codebook(
    x: Array, scale: Array, levels: Array, *, round_fn: rounding.RoundFn = rounding.nearest_even
) -> Array:
    """Round x to a learned codebook and return it in real units.

        x_hat = scale * levels[j],   j the index of x / scale

    VJP, for a cotangent u [*shape], with v = x / scale and the window levels[0] <= v <= levels[-1]:

        x_bar         = u                               inside,  0               outside
        scale_bar     = sum u * (levels[j] - v)         inside,  u * levels[j]   outside
        levels_bar[k] = sum over elements with j = k of u * scale

    Levels as for the shared weights of Han et al. 2016 (Deep Compression), eq. 3; x and scale as
    for `fake_quant`, whose values these are. The map depends on scale * levels only, so learn
    one of the two or fix a gauge; the straight-through x_bar does not know of that symmetry.

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups].
      levels: ascending, in units of the scale [n]; after an update by a large step, sort them.
      round_fn: as for `CodebookFormat`.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      TypeError: x or levels not real.
      ValueError: shapes that do not divide, a concrete scale that is not positive, or concrete
        levels that do not ascend.
    """
    x, scale, levels = jnp.asarray(x), jnp.asarray(scale), jnp.asarray(levels)
    check_arguments(x, scale, None, CodebookFormat(levels))
    dtype = compute_dtype(x)
    scale, levels, wide = (a.astype(dtype) for a in (scale, levels, x))
    v = jax.lax.stop_gradient(wide * expand(inverse(scale), x.shape))
    index = _index(v, jax.lax.stop_gradient(levels), round_fn)
    return _look_up(wide, expand(scale, x.shape), levels, v, index).astype(x.dtype)


@jax.custom_jvp
def _look_up(x, scale, levels, v, index):
    """Return scale * levels[index]; x acts through its derivative only, and as NaN."""
    return jnp.where(jnp.isnan(x), x, scale * levels[index])


@_look_up.defjvp
def _look_up_jvp(primals, tangents):
    x, scale, levels, v, index = primals
    dx, dscale, dlevels = tangents[:3]
    slack = 2 * jnp.finfo(v.dtype).eps * (levels[-1] - levels[0])  # as in `fake_quant`
    inside = (v >= levels[0] - slack) & (v <= levels[-1] + slack)
    # The map inside is x + scale * (levels[j] - v), v held: its own derivatives are right too.
    straight = jnp.where(inside, dx - jnp.where(inside, v, 0) * dscale, jnp.zeros_like(x))
    return _look_up(*primals), straight + levels[index] * dscale + scale * dlevels[index]


def _as_array(values, dtype) -> Array:
    return (
        jnp.asarray(values).astype(dtype)
        if isinstance(values, jax.Array)
        else jnp.asarray(values, dtype)
    )


def _index(v, levels, round_fn):
    """Index [*shape] of the level chosen for v [*shape]; anything for NaN."""
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
    """Midpoints of neighbours as an unevaluated sum (rounded, rest), both [n - 1]: Knuth's sum."""
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
    """How many of sorted_values [n] lie below v [*shape] (or at it, if side is right)."""
    method = "compare_all" if sorted_values.size <= FEW_LEVELS else "scan"
    return jnp.searchsorted(sorted_values, v, side=side, method=method).astype(jnp.int32)


def _ascends(a):
    return (a[1:] > a[:-1]).all() & (abs(a) < np.inf).all()


def _check_levels(values) -> None:
    if isinstance(values, jax.Array) and not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"levels: got {values.dtype}, expected a real floating dtype; cast first.")
    shape = np.shape(values)
    if len(shape) != 1 or not 2 <= shape[0] <= MAX_LEVELS:
        raise ValueError(
            f"levels: got shape {shape}, expected [n] with n in 2..{MAX_LEVELS}; use vmap for "
            "several codebooks."
        )
    is_data = isinstance(values, jax.Array)
    if not (concrete_all(_ascends, values) if is_data else _ascends(np.float32(values))):
        raise ValueError(
            f"levels: got {np.asarray(values)}, expected finite numbers that ascend strictly as "
            "float32; sort them and drop duplicates (jnp.unique)."
        )
