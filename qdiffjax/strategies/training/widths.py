"""Widths of weights that are learned, within a budget of bits."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdiffjax import quant
from qdiffjax._checks import NOT_NEGATIVE, POSITIVE, check_count, check_number, checked, require
from qdiffjax.precision import OperandFormat, Quantized, SiteBits
from qdiffjax.precision.settings import mapped
from qdiffjax.quant import IntFormat
from qdiffjax.strategies.drafts import CLIP, Cure, Draft
from qdiffjax.strategies.tables import explicit
from qdiffjax.strategies.training.loop import Training, evaluations, learned
from qdiffjax.strategies.training.objectives import Objective, distillation
from qdiffjax.strategies.training.values import (
    LSQ,
    WEIGHTS,
    Choice,
    Start,
    Values,
    starting_point,
    trained,
)

BITS = "bits"
FEWEST, MOST = 2, 8


@checked(budget=POSITIVE, num_steps=check_count, learning_rate=POSITIVE, weight=NOT_NEGATIVE)
def learned_widths(
    budget: float,
    num_steps: int = 300,
    *,
    objective: Objective | None = None,
    sites: Sequence[str] | None = None,
    learning_rate: float = 0.05,
    weight: float = 100.0,
    directory: str | Path | None = None,
    progress: bool = True,
) -> Cure:
    """Return the cure that learns how many bits each weight has, from the objective's derivative.

        min over b of  L(b) / L(b_0) + weight * max(0, mean(b) / budget - 1)^2

    A real width lies between two grids of the same range, see `quant.fake_quant_fractional`
    (FracBits, Yang and Jin 2021). In the end widths are rounded down, and those with the largest
    fraction get a bit more while the budget lasts. It changes the recipe: roundings of weights, and
    their training, come after it. Nothing says that the result is better than equal widths.

    Args:
      budget: bits of a weight on average over the weights that change their width.
      num_steps: steps of Adam.
      objective: see `qat`.
      sites: globs; others keep the recipe's width. None changes all that are rounded.
      learning_rate: of Adam, in bits.
      weight: of what is beyond the budget.
      directory, progress: see `qat`.

    Raises:
      ValueError: a budget that is not between 2 and 8 bits; weights that are no symmetric integers.
    """
    check_number("budget", budget, least=FEWEST, most=MOST)
    objective = distillation() if objective is None else objective

    choice = Choice({}, (WEIGHTS,), None, LSQ)

    def check(draft: Draft) -> None:
        grids = trained(draft, sites, choice)[1]
        require(grids, "widths", got="no weight that is rounded", expected="one",
                remedy="a recipe such as W4A4")  # fmt: skip
        for name, grid in grids.items():
            is_plain = isinstance(grid.format, IntFormat) and grid.format.signed
            require(is_plain and grid.zero_point is None and int(grid.format.bits) >= FEWEST, name,
                    got=f"weights as {grid.format}", expected=f"symmetric integers of {FEWEST} or "
                    "more bits", remedy="a recipe such as W4A4")  # fmt: skip

    def apply(draft: Draft) -> Draft:
        start, _ = starting_point(draft, sites, choice)
        task = objective.task(draft)
        how = Training(num_steps, objective.batch_size, learning_rate, 0.9, directory, 500,
                       progress)  # fmt: skip
        sizes = {name: grid.w.size for name, grid in start.grids.items()}
        total = sum(sizes.values())

        def price(values):
            bits = real_bits(start, values)
            mean = sum(jnp.sum(bits[name]) * (sizes[name] / total) for name in sizes)
            return weight * jnp.maximum(mean / budget - 1, 0) ** 2

        first = {BITS: {name: jnp.zeros((), grid.w.dtype) for name, grid in start.grids.items()}}
        found = learned(draft, task, how, fractional, start, first, price_fn=price,
                        about={"objective": objective.name, "budget": budget})  # fmt: skip
        bits = {name: float(b) for name, b in real_bits(start, found.values).items()}
        done = with_widths(draft, whole_bits(bits, sizes, budget))
        done = dataclasses.replace(done, losses={**draft.losses, name_: found.losses})
        return done.billed(evaluations(task, num_steps), num_steps)

    name_ = f"widths of {budget:g} bits: {objective.name}"
    return Cure(name_, CLIP, apply, check)


def real_bits(start: Start, values: Values) -> dict[str, Any]:
    """Return the real widths of weights, within the fewest and the most bits."""
    return {
        name: jnp.clip(jnp.asarray(grid.format.bits).astype(grid.w.dtype) + values[BITS][name],
                       FEWEST, MOST)
        for name, grid in start.grids.items()
    }  # fmt: skip


def fractional(start: Start, values: Values) -> Quantized:
    """Return the denoiser with weights between the two grids beside each real width."""
    inputs = dict(start.q.site_inputs)
    for name, bits in real_bits(start, values).items():
        grid = start.grids[name]
        high = jnp.asarray(grid.format.qmax).astype(grid.scale.dtype)
        w = quant.fake_quant_fractional(grid.w, grid.scale * high, bits)
        inputs[name] = inputs[name]._replace(weight=w)
    return dataclasses.replace(start.q, site_inputs=inputs)


def whole_bits(bits: dict[str, float], sizes: dict[str, int], budget: float) -> dict[str, int]:
    """Return whole widths within a budget: rounded down, the largest fractions up while it lasts.

    Args:
      bits: real widths by site.
      sizes: numbers of each weight.
      budget: bits of a number on average; if even the floors are beyond it, the widest lose bits.
    """
    found = {name: max(FEWEST, int(np.floor(b + 1e-6))) for name, b in bits.items()}
    most = budget * sum(sizes.values()) * (1 + 1e-9)
    used = sum(found[name] * sizes[name] for name in found)
    while used > most and max(found.values()) > FEWEST:
        name = max(found, key=lambda n: (found[n], found[n] - bits[n]))
        found[name] -= 1
        used -= sizes[name]
    for name in sorted(bits, key=lambda n: found[n] - bits[n]):
        if bits[name] - found[name] > 1e-6 and used + sizes[name] <= most:
            found[name] += 1
            used += sizes[name]
    return found


def with_widths(draft: Draft, bits: dict[str, int]) -> Draft:
    """Return the draft whose recipe has these widths of weights, all else as it was."""
    recipe, options = explicit(draft)

    def changed(table: dict[str, SiteBits]) -> dict[str, SiteBits]:
        found = dict(table)
        for name in bits.keys() & table.keys():
            before, own = table[name].weight, bits[name]
            is_format = isinstance(before, OperandFormat)
            new = dataclasses.replace(before, format=IntFormat(own)) if is_format else own
            found[name] = table[name]._replace(weight=new)
        return found

    return dataclasses.replace(draft, recipe=mapped(recipe, changed), options=options)
