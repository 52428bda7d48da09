"""Numbers from samples with their uncertainty, and the level at which nothing was changed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import (
    FROM_2,
    FUNCTION,
    OPEN_SHARE,
    check_count,
    check_key,
    check_numbers,
    checked,
    require,
)
from qdiffjax._typing import Array, Key, float_dtype


class Estimate(NamedTuple):
    """A number from samples with its interval, of 95 % unless said otherwise; leaves [*shape]."""

    value: Array
    low: Array
    high: Array


class BesideFloor(NamedTuple):
    """What an estimator says of two laws, and of two independent halves of the first of them."""

    measured: Any
    floor: Any


@checked(samples=functools.partial(check_numbers, least_rank=1, least_size=2, finite=False))
def mean_interval(samples) -> Estimate:
    """Return the mean over the first axis, +- 1.96 standard errors: [num, *shape] -> [*shape].

    Raises:
      ValueError: if there are fewer than two samples.
    """
    samples = jnp.asarray(samples).astype(float_dtype(samples))
    num = samples.shape[0]
    mean = jnp.mean(samples, axis=0)
    width = 1.96 * jnp.std(samples, axis=0, ddof=1) / num**0.5
    return Estimate(mean, mean - width, mean + width)


@checked(stat_fn=FUNCTION, key=check_key, num=check_count, block=check_count,
         confidence=OPEN_SHARE)  # fmt: skip
def bootstrap(
    stat_fn, *arrays, key: Key, num: int = 200, block: int = 1, confidence: float = 0.95
) -> Estimate:
    """Return stat_fn(*arrays) with its percentile bootstrap interval (Efron 1979).

    All arrays are resampled by the same rows, which keeps pairs together. The interval shows
    the spread, not the bias: distances of empirical laws lean upwards, on resamples more so, and
    a resample has rows twice, which unbiased MMD and nearest neighbours cannot stand: for these
    use `block_mean`.

    Args:
      stat_fn: arrays [n, ...] -> [*shape], traceable.
      arrays: paired samples, all with first axis n.
      key: of the resampling.
      num: number of resamples.
      block: rows that stay together, on a circle (Politis & Romano 1992); more than 1 for rows
        that depend on their neighbours, such as the states of one chain.
      confidence: of the interval.

    Raises:
      ValueError: if the first axes differ, or the block is not in 1 ... n.
    """
    size = _common_size(arrays)
    require(
        block <= size,
        "block",
        got=f"{block} of {size} rows",
        expected=f"1 ... {size}",
        remedy="shorten it",
    )
    starts = jax.random.randint(key, (num, -(-size // block)), 0, size)
    rows = (starts[:, :, None] + jnp.arange(block)[None, None]) % size
    rows = rows.reshape(num, -1)[:, :size]
    draws = jax.lax.map(lambda row: stat_fn(*(jnp.asarray(a)[row] for a in arrays)), rows)
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = (jnp.quantile(draws, q, axis=0) for q in ends)
    return Estimate(jnp.asarray(stat_fn(*arrays)), low, high)


@checked(stat_fn=FUNCTION, num_blocks=FROM_2)
def block_mean(stat_fn, *arrays, num_blocks: int = 10) -> Estimate:
    """Return the mean of stat_fn over disjoint blocks of rows, with Student's 95 % interval.

    Unbiased if stat_fn is, and its interval is sound where that of a U-statistic is hardest: at
    equal laws, where it degenerates (Zaremba, Gretton & Blaschko 2013). Costs power: blocks are
    smaller than the whole.

    Args:
      stat_fn: arrays [n // num_blocks, ...] -> [*shape], traceable.
      arrays: samples, all with first axis n; rows left over are dropped.
      num_blocks: at least 2.
    """
    size = _common_size(arrays) // num_blocks
    require(size >= 1, "num_blocks", got=f"{num_blocks} of {_common_size(arrays)} rows",
            expected="at most as many as rows", remedy="take fewer blocks")  # fmt: skip
    blocks = [jnp.asarray(a)[: size * num_blocks] for a in arrays]
    blocks = [a.reshape(num_blocks, size, *a.shape[1:]) for a in blocks]
    mean, low, high = mean_interval(jax.lax.map(lambda block: stat_fn(*block), tuple(blocks)))
    width = student_quantile(num_blocks) / 1.96 * (high - low) / 2
    return Estimate(mean, mean - width, mean + width)


@checked(stat_fn=FUNCTION)
def jackknife(
    stat_fn: Callable[[Sequence], Any], groups: Sequence, *, unbiased: bool = False
) -> Estimate:
    """Return stat_fn(groups) with the interval that leaving each of the groups out gives.

        value +- t sqrt((G - 1) / G  sum_g (s_g - mean s)^2)

    with Student's t of G - 1 degrees, for smooth statistics of groups of one size that are
    independent of each other (Quenouille 1949, Tukey 1958). The interval shows the spread, not the
    bias: it covers what as many new samples would give on average. On average the squared width is
    not too small (Efron & Stein 1981).

    With `unbiased` the value is G s - (G - 1) mean s_g, the intercept of the line in 1 / N through
    all samples and those without a group: a bias in 1 / N is gone, and the interval covers what
    infinitely many samples would give.

    Args:
      stat_fn: a sequence of groups -> a number or an array; NumPy, not traced.
      groups: at least two, such as `[(x[g::20], y[g::20]) for g in range(20)]`.
      unbiased: whether to take the bias off.
    """
    num = len(groups)
    require(num >= 2, "groups", got=num, expected="at least two", remedy="cut the samples in more")
    left = [np.asarray(stat_fn([*groups[:g], *groups[g + 1 :]]), np.float64) for g in range(num)]
    width = student_quantile(num) * np.sqrt((num - 1) * np.var(left, axis=0))
    value = np.asarray(stat_fn(groups), np.float64)
    value = num * value - (num - 1) * np.mean(left, axis=0) if unbiased else value
    ends: Any = (value, value - width, value + width)
    return Estimate(*ends)


@checked(num=FROM_2)
def student_quantile(num: int) -> float:
    """Return the factor of the standard error of num values, 1.96 for many."""
    from scipy import stats

    return float(stats.t.ppf(0.975, num - 1))


@checked(distance_fn=FUNCTION, key=check_key)
def beside_floor(distance_fn: Callable, x, y, *, key: Key) -> BesideFloor:
    """Return distance_fn of x against y, and of x against itself: the noise floor.

    The rows are split in two halves A and B at random: `measured` compares x[A] with y[A],
    the floor x[A] with x[B], an estimator of the same size for two laws that are equal. Only what
    stands out from the floor is a difference of laws. With paired noise a coupling or a bracket
    resolves differences far below this floor, which has none.

    Args:
      distance_fn: (x [num, *shape], y [num, *shape]) -> anything.
      x: independent full-precision samples [n, *shape].
      y: quantized ones [n, *shape].
      key: of the split.
    """
    size = _common_size((x, y))
    order = jax.random.permutation(key, size)
    first, second = order[: size // 2], order[size // 2 : size // 2 * 2]
    x, y = jnp.asarray(x), jnp.asarray(y)
    return BesideFloor(distance_fn(x[first], y[first]), distance_fn(x[first], x[second]))


def _common_size(arrays) -> int:
    sizes = {len(a) for a in arrays}
    require(
        len(sizes) == 1,
        "samples",
        got=f"first axes {sorted(sizes)}",
        expected="one size",
        remedy="pass paired samples",
    )
    return sizes.pop()
