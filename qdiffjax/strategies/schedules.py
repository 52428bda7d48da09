"""Widths by step of the sampler: what they can gain at most, and the best of whole bits."""

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_key, check_number, check_numbers, require
from qdiffjax._typing import Array, Key
from qdiffjax.estimates import Estimate, bootstrap
from qdiffjax.strategies.allocation import choose

NUM_RESAMPLES = 1000


def step_ceiling(contributions: Array, *, key: Key, coherent: bool = False) -> Estimate:
    """Return the most that widths by step can save at the same error, in bits a step.

        log2(AM / GM) / 2  of the mean squares D_i      steps whose errors do not add up
        log2(AM / GM)      of the mean |g_i|            coherent, of one sign

    Of the law sum_i D_i 4^-(b_i - b): its least value at a mean width is that of b_i = B +
    log2(D_i / GM) / 2, which gains AM / GM over equal widths (Gersho & Gray 1992, section 8.3).
    Real bits, so that whole ones reach less. Computed before any search.

    Args:
      contributions: squares of the error that each step adds to a sample, at equal widths, or
        coherent ones themselves [samples, N].
      key: of the bootstrap over samples, whose interval is of 95 %.
      coherent: which of the two they are.

    Raises:
      ValueError: fewer than two samples, numbers that are not finite, a square below 0, a step that
        adds nothing.
    """
    check_numbers("contributions", contributions, least_rank=2)
    check_key("key", key)
    values = jnp.asarray(contributions)
    if coherent:
        values = jnp.abs(values)
    check_number("contributions", values, least=0)
    require(values.ndim == 2 and len(values) >= 2, "contributions", got=list(values.shape),
            expected="[samples, N] with two samples or more",
            remedy="sum the sites, leave the steps")  # fmt: skip
    require(bool(jnp.all(jnp.mean(values, 0) > 0)), "contributions", got="a step that adds nothing",
            expected="errors at every step",
            remedy="leave that step out")  # fmt: skip

    def bits(values):
        mean = jnp.mean(values, 0)
        gain = jnp.log2(jnp.mean(mean)) - jnp.mean(jnp.log2(mean))
        return gain if coherent else gain / 2

    return bootstrap(bits, values, key=key, num=NUM_RESAMPLES)


def widths_by_step(squares, width: int, least: int = 2, most: int = 8) -> np.ndarray:
    """Return whole bits for each step [N] of least error, a mean of `width` at most.

        min sum_i D_i 4^-(b_i - width)   such that   sum_i b_i <= N width,   least <= b_i <= most

    Args:
      squares: D_i, mean squares of what each step adds to the error at `width` bits [N].
      width: on average.
      least, most: of a step.

    Raises:
      ValueError: a width outside of least and most; squares that are negative or not finite.
    """
    check_numbers("squares", squares, least_rank=1)
    check_number("squares", squares, least=0)
    require(least <= width <= most, "width", got=width, expected=f"{least} to {most}",
            remedy="widen the range of a step's bits")  # fmt: skip
    squares, bits = np.asarray(squares, np.float64).ravel(), np.arange(least, most + 1)
    costs = np.tile(bits.astype(float), (len(squares), 1))
    errors = squares[:, None] * 4.0 ** (width - bits)
    return bits[choose(costs, errors, float(width * len(squares))).choice]


def ends_rule(num_steps: int, width: int, share: float = 0.06) -> np.ndarray:
    """Return widths [N] one bit more at both ends of the run, one less at as many steps between.

    The rule of production recipes, such as 3 + 44 + 3 of 50 steps, at no more bits in all.

    Raises:
      ValueError: fewer steps than twice as many as the ends have.
    """
    ends = max(1, round(share * num_steps))
    require(num_steps >= 4 * ends, "num_steps", got=num_steps, expected=f"at least {4 * ends}",
            remedy="a smaller share for the ends")  # fmt: skip
    bits = np.full(num_steps, width)
    bits[:ends] += 1
    bits[-ends:] += 1
    between = np.linspace(ends, num_steps - 1 - ends, 2 * ends).round().astype(int)
    bits[between] -= 1
    return bits
