"""The grid of an activation, whether its rounding is simulated or real."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant.calibration.ranges import scale_from_range
from qdiffjax.quant.formats import BlockFormat, Format, IntFormat
from qdiffjax.quant.rounding import RoundFn, nearest_even, stochastic
from qdiffjax.quant.straight_through import fake_quant, with_value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActivationGrid:
    """The numbers to which a real operand is rounded before it is multiplied; a pytree.

        x ≈ scale * (codes - zero_point),  codes = clip(round(x / scale) + zero_point, qmin, qmax)

    Attributes:
      format: the codes, or a `BlockFormat`. Bits that are an array are data: grids that differ in
        them share one compilation. Kernels need static bits.
      scale: [] or [*groups], in units of x; None: that of the range of the data at hand (dynamic).
      zero_point: integer code that means 0.0, with the shape of scale, or None for symmetric; that
        of a dynamic grid comes with its scale.
      key: makes the rounding stochastic; None rounds to nearest.
      group_size: of a dynamic grid, how many neighbours share a scale; None: each token, that is
        each row of a matrix product and each sample of a convolution or an edge; 0: all numbers of
        the operand, other samples too. A block format has its own. Static.
      feedback: whether what a call's rounding lost is added to what the next call rounds, see
        `round_with_residual`. Static.
      difference: whether a call rounds the difference to what the call before had rounded. Static.
      carry: factor of what feedback hands on, [] or None for 1, see `precision.cancelled`.
      pieces: of a dynamic grid, lengths of neighbouring channels that have grids of their own, as
        if they were rounded apart; () for one grid. Static.
    """

    format: Any
    scale: Any = None
    zero_point: Any = None
    key: Any = None
    group_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    feedback: bool = dataclasses.field(default=False, metadata={"static": True})
    difference: bool = dataclasses.field(default=False, metadata={"static": True})
    carry: Any = None
    pieces: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def has_memory(self) -> bool:
        """Whether a call's rounding depends on that of the call before."""
        return self.feedback or self.difference

    def with_bits_as_data(self) -> "ActivationGrid":
        """Return the same grid, its bits an array of the shape of its scale.

        Formats other than integers stay as they are: their fields are the program's.
        """
        format: Any = self.format
        if not isinstance(format, IntFormat):
            return self
        shape = () if self.scale is None else jnp.shape(self.scale)
        bits = jnp.full(shape, format.bits, jnp.int32)
        return dataclasses.replace(self, format=dataclasses.replace(format, bits=bits))

    def parameters(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array | None]:
        """Return scale and zero point with the rank of x; `axes` share a dynamic grid, which is a
        constant in derivatives.
        """
        if self.scale is None:
            return jax.lax.stop_gradient(token_grid(x, self.format, axes))
        return _ranked(self.scale, x), None if self.zero_point is None else _ranked(
            self.zero_point, x
        )

    def round(
        self,
        x: Array,
        axes: tuple[int, ...],
        round_fn: RoundFn | None = None,
        group_axis: int | None = None,
    ) -> Array:
        """Return x [*shape] rounded to the grid in real units, `fake_quant` with its derivative.

        A dynamic grid clips nothing, so that its derivative in x is the identity.

        Args:
          x: the operand.
          axes: those of one token.
          round_fn: real to integer; None is to nearest, or at random if there is a key.
          group_axis: where groups and pieces lie; None, or an axis shorter than a group, makes
            groups of neighbours of the flattened token. The last group may be shorter.
        """
        if self.pieces:
            return jnp.concatenate([
                grid.round(piece, axes, round_fn, group_axis)
                for grid, piece in self.apart(x, group_axis)
            ], group_axis)  # fmt: skip
        if self.scale is not None:
            return fake_quant(x, *self.parameters(x, axes), format=self.format,
                              round_fn=round_fn or self._round_fn(x))  # fmt: skip
        size = self.format.block_size if isinstance(self.format, BlockFormat) else self.group_size
        if not size:
            axes = axes if size is None else tuple(range(x.ndim))
            rounded = fake_quant(x, *self.parameters(x, axes), format=self.format,
                                 round_fn=round_fn or self._round_fn(x))  # fmt: skip
            return with_value(x, rounded)
        rows, back = grouped(x, size, axes, group_axis)
        if isinstance(self.format, BlockFormat):
            element = self.format.element
            grid: Any = (_sample_scale(rows, self.format), None)
        else:
            element, grid = self.format, token_grid(rows, self.format, (rows.ndim - 1,))
        rounded = fake_quant(rows, *jax.lax.stop_gradient(grid), format=element,
                             round_fn=round_fn or self._round_fn(rows))  # fmt: skip
        return with_value(x, back(rounded))

    def round_with_residual(
        self, x: Array, residual: Array, axes: tuple[int, ...], group_axis: int | None = None
    ) -> tuple[Array, Array]:
        """Return x [*shape] rounded with error feedback, and what the next call is to be handed.

            q_i = Q(x_i + r_i),   r_{i+1} = x_i + r_i - q_i

        so that q_i - x_i = r_i - r_{i+1}: the error is high-pass in the number of the call, however
        x moves. What lies beyond a static grid's ends is not carried on, so that |r| stays within
        half a step (anti-windup). With a `carry` what is lost is handed on so many times. With
        `difference` what is handed on is the rounded operand,

            q_i = q_{i-1} + Q(x_i - q_{i-1}),   q_{-1} = 0

        whose range is that of a step's change (MoDiff, ICML 2025): since the difference is taken to
        what was rounded, errors do not add up.
        """
        if self.difference:
            rounded = residual + self.round(x - residual, axes, None, group_axis)
            return rounded, jax.lax.stop_gradient(rounded)
        target = x + residual
        rounded = self.round(target, axes, None, group_axis)
        if self.scale is not None:
            scale, zero = self.parameters(x, axes)
            shift = jnp.zeros_like(scale) if zero is None else zero.astype(scale.dtype)
            ends = ((jnp.asarray(end).astype(scale.dtype) - shift) * scale
                    for end in (self.format.low, self.format.high))  # fmt: skip
            low, high = (jnp.broadcast_to(end, x.shape).astype(x.dtype) for end in ends)
            target = jnp.clip(target, low, high)
        lost = target - rounded
        if self.carry is not None:
            lost = lost * jnp.asarray(self.carry).astype(lost.dtype)
        return rounded, jax.lax.stop_gradient(lost)

    def apart(self, x: Array, group_axis: int | None) -> list[tuple["ActivationGrid", Array]]:
        """Return each piece of an operand with its grid; all of it where there are no pieces.

        Raises:
          ValueError: pieces that are not all channels.
        """
        if not self.pieces:
            return [(self, x)]
        num = None if group_axis is None else x.shape[group_axis]
        require(sum(self.pieces) == num, "pieces", got=f"{self.pieces}, {sum(self.pieces)} in all",
                expected=f"{num} channels", remedy="give the length of each part")  # fmt: skip
        assert group_axis is not None
        whole = dataclasses.replace(self, pieces=())
        grids = [
            whole if self.key is None
            else dataclasses.replace(whole, key=jax.random.fold_in(self.key, place))
            for place in range(len(self.pieces))
        ]  # fmt: skip
        ends = [sum(self.pieces[: place + 1]) for place in range(len(self.pieces) - 1)]
        return list(zip(grids, jnp.split(x, ends, group_axis), strict=True))

    def _round_fn(self, x: Array) -> RoundFn:
        if self.key is None:
            return nearest_even
        return functools.partial(stochastic, uniform=jax.random.uniform(
            self.key, x.shape, jnp.float32
        ))  # fmt: skip


def _ranked(value, x: Array) -> Array:
    value = jnp.asarray(value)
    return value if value.ndim else value.reshape((1,) * x.ndim)


def grouped(x: Array, size: int, axes: tuple[int, ...], group_axis: int | None):
    """Return x as rows of `size` neighbours [..., groups, size], and the way back.

    Along group_axis, or, where that is None or shorter than a group, along the flattened `axes`.
    The last group is filled up with zeros, which change no scale and are taken away again.
    """
    if group_axis is None or x.shape[group_axis] < size:
        order = (*(a for a in range(x.ndim) if a not in axes), *axes)
        kept = x.ndim - len(axes)
    else:
        order = (*(a for a in range(x.ndim) if a != group_axis), group_axis)
        kept = x.ndim - 1
    moved = x.transpose(order)
    num = math.prod(moved.shape[kept:])
    flat = moved.reshape(*moved.shape[:kept], num)
    filled = jnp.pad(flat, [(0, 0)] * kept + [(0, -num % size)])
    rows = filled.reshape(*filled.shape[:kept], -1, size)

    def back(rows: Array) -> Array:
        flat = rows.reshape(*filled.shape)[..., :num]
        return flat.reshape(moved.shape).transpose([order.index(a) for a in range(x.ndim)])

    return rows, back


def _sample_scale(rows: Array, format: BlockFormat) -> Array:
    """Return the scale of each row [..., groups, 1]; one for the tensor too is that of a sample."""
    absmax = jnp.max(jnp.abs(rows.astype(jnp.float32)), -1, keepdims=True, initial=0)
    return jax.vmap(lambda a: format.scale_fn(a, format.element))(absmax).astype(jnp.float32)


def activation_grid(low: Array, high: Array, format: Format) -> ActivationGrid:
    """Return the grid of a format over a range, with the shape of the range.

    Integers without sign make an affine grid, which covers low, high and zero; other formats are
    symmetric about zero.
    """
    scale, zero_point = scale_from_range(
        low, high, qmin=format.low, qmax=format.high, symmetric=not is_affine(format)
    )
    return ActivationGrid(format, scale, zero_point)


def is_affine(format: Format) -> bool:
    """Return whether grids of a format have a zero point: integers without sign."""
    return isinstance(format, IntFormat) and not format.signed


def token_grid(x: Array, format: Format, axes: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Return scale and zero point of the range of x over `axes`, kept with length 1.

    Symmetric: absmax / high, and 1 where x is 0. Affine, for integers without sign: the grid from
    min(x, 0) to max(x, 0), which has all its codes also where x has one sign, as after SiLU.
    """
    if not is_affine(format):
        return token_scale(x, format, axes), None
    wide = x.astype(jnp.float32)
    ends = (reduce(wide, axes, keepdims=True) for reduce in (jnp.min, jnp.max))
    return scale_from_range(*ends, qmin=format.low, qmax=format.high, symmetric=False)


def token_scale(x: Array, format: Format, axes: tuple[int, ...]) -> Array:
    """Return absmax / high over `axes`, which are kept with length 1; 1 where x is 0."""
    absmax = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True)
    high = format.high
    scale, _ = scale_from_range(-absmax, absmax, qmin=-high, qmax=high, symmetric=True)
    return scale
