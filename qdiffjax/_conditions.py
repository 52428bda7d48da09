"""Conditions, labels and shapes of samples that mean nothing are refused in words."""

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import concrete, require


def checked_shape(shape) -> tuple[int, ...]:
    """Return the shape of a sample as integers; refuse what is none."""
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    is_shape = all(isinstance(n, (int, np.integer)) and n >= 1 for n in sizes)
    require(sizes and is_shape, "shape", got=repr(shape), expected="positive integers",
            remedy="that of one sample, without the batch, such as (28, 28, 1)")  # fmt: skip
    return tuple(map(int, sizes))


def check_cond(cond, num: int | None = None) -> None:
    """Refuse conditions without a common leading axis, of `num` samples if that is said."""
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(cond)}
    expected = "a leading axis" if num is None else f"a leading axis of {num}"
    is_one = len(sizes) == 1 and None not in sizes and (num is None or sizes == {num})
    require(is_one or not sizes, "cond", got=f"leading axes {sorted(map(str, sizes))}",
            expected=f"{expected} of samples, the same in every leaf",
            remedy="repeat what all samples share, or close over it")  # fmt: skip
    for leaf in jax.tree.leaves(cond):
        _check_width(leaf)


def as_arguments(cond) -> tuple:
    """Return what a function of (params, x, t[, cond]) is called with after t: (cond,), or ()."""
    return () if cond is None else (cond,)


def _check_width(leaf) -> None:
    """Refuse integers that JAX would cut to the width it computes in."""
    values = concrete(leaf)
    if values is not None and values.dtype.kind in "iu" and values.size:
        ends = np.iinfo(jax.dtypes.canonicalize_dtype(values.dtype))
        require(values.min() >= ends.min and values.max() <= ends.max, "cond",
                got=f"integers from {values.min()} to {values.max()}",
                expected=f"those of {ends.dtype}", remedy="count labels from 0")  # fmt: skip


def check_labels(label, num_classes: int) -> None:
    """Refuse labels that are no integers or, if they can be looked at, out of range.

    Raises:
      ValueError: says what was got.
    """
    _check_width(label)
    is_traced = isinstance(label, jax.core.Tracer)
    values = label if is_traced else np.asarray(label)  # constant, even where the rest is traced
    require(jnp.issubdtype(values.dtype, jnp.integer), got=f"labels of type {values.dtype}",
            expected="integers", remedy="round them first")  # fmt: skip
    if not is_traced:
        low, high = values.min(), values.max()
        require(
            low >= 0 and high <= num_classes, got=f"labels from {low} to {high}",
            expected=f"0 ... {num_classes - 1}, or {num_classes} for no class",
            remedy="count classes from 0",
        )  # fmt: skip
