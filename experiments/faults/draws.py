"""Faults drawn at random: what goes wrong at one site of a quantized denoiser, and when."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion, precision
from qdiffjax.precision import OperandFormat, Quantized, Recipe, SiteBits, Switch, rules
from qdiffjax.quant import ActivationGrid, IntFormat

SCALE, ZERO_POINT, TWO_BITS, EDGE, STEP = (
    "wrong scale", "swapped zero point", "2 bits", "clipped edge", "step off by one"
)  # fmt: skip
KINDS = (SCALE, ZERO_POINT, TWO_BITS, EDGE, STEP)
FACTORS = (1.1, 8.0)  # of a wrong scale, or one over it
LEFT = (0.02, 0.8)  # of a range whose edge is clipped
ALWAYS = 0.6  # share of faults at all steps; of the others half begin at one, half are at one alone


class Fault(NamedTuple):
    """One fault: at a site, None for a step off by one, at the steps [start, stop).

    amount: factor of the scale, share of the range that is left, or the sign of the step.
    """

    kind: str
    site: str | None
    start: int
    stop: int
    amount: float


def draw(rng: np.random.Generator, q: Quantized, kind: str, num_steps: int) -> Fault:
    """Return a fault of this kind at a site of q that can have it."""
    start, stop = 0, num_steps
    if rng.random() > ALWAYS:
        start = int(rng.integers(num_steps))
        stop = num_steps if rng.random() < 0.5 else start + 1
    if kind == STEP:
        return Fault(kind, None, start, stop, float(rng.choice((-1, 1))))
    able = {SCALE: has_weight, ZERO_POINT: has_zero_point}.get(kind, has_grid)
    names = [name for name, inputs in q.site_inputs.items() if able(inputs)]
    low, high = np.log(FACTORS)
    amount = {
        SCALE: lambda: float(np.exp(rng.choice((-1, 1)) * rng.uniform(low, high))),
        EDGE: lambda: float(rng.choice((-1, 1)) * rng.uniform(*LEFT)),
    }.get(kind, lambda: 0.0)()
    return Fault(kind, names[rng.integers(len(names))], start, stop, amount)


def grids_of(inputs) -> list[ActivationGrid]:
    """Return all grids of a site's activations, at any step."""
    return [grid for operand in inputs.activations for grid in rules.grids_of(operand)]


def has_weight(inputs) -> bool:
    """Return whether a site's weight is quantized."""
    return inputs.weight is not None


def has_grid(inputs) -> bool:
    """Return whether a site's activations are rounded on static grids."""
    return any(grid.scale is not None for grid in grids_of(inputs))


def has_zero_point(inputs) -> bool:
    """Return whether some grid of a site has a zero point."""
    return any(grid.zero_point is not None for grid in grids_of(inputs))


def applied(fault: Fault, q: Quantized, calibration, num_steps: int) -> Quantized:
    """Return q with a fault at its site, as data of the same structure, or with more choices."""
    if fault.site is None:
        return q
    inputs = q.site_inputs[fault.site]
    if fault.kind == TWO_BITS:
        activation = OperandFormat(IntFormat(2, signed=False), scales="static")
        bits = SiteBits(2 if has_weight(inputs) else None, activation)
        bad = precision.quantize(calibration, Recipe({fault.site: bits})).site_inputs[fault.site]
        weight, activations = bad.weight, bad.activations
    else:
        other = next_zero_point(q, fault.site)
        edit = {SCALE: lambda grid: grid, EDGE: lambda grid: clipped(grid, fault.amount),
                ZERO_POINT: lambda grid: swapped(grid, other)}[fault.kind]  # fmt: skip
        activations = tuple(_edited(edit, operand) for operand in inputs.activations)
        weight = inputs.weight
        if fault.kind == SCALE:
            weight = _edited(lambda w: fault.amount * w, weight)
    on = during(fault, num_steps)
    new = inputs._replace(weight=at_steps(inputs.weight, weight, on), activations=tuple(
        at_steps(*pair, on) for pair in zip(inputs.activations, activations, strict=True)
    ))  # fmt: skip
    return dataclasses.replace(q, site_inputs=q.site_inputs | {fault.site: new})


def shifted(fault: Fault, steps: diffusion.Steps) -> diffusion.Steps:
    """Return the sampler with the times of the step before or after, if that is the fault."""
    if fault.kind != STEP:
        return steps
    t, num = np.asarray(steps.t), len(steps.t)
    others = t[np.clip(np.arange(num) + int(fault.amount), 0, num - 1)]
    return steps._replace(t=jnp.asarray(np.where(during(fault, num), others, t)))


def during(fault: Fault, num_steps: int) -> np.ndarray:
    """Return at which steps a fault is there [num_steps]."""
    own = np.arange(num_steps)
    return (own >= fault.start) & (own < fault.stop)


def _edited(edit: Callable[[Any], Any], operand):
    """Return an operand with each of its alternatives edited; None stays."""
    if isinstance(operand, Switch):
        return Switch(tuple(_edited(edit, each) for each in operand.alternatives), operand.which)
    return None if operand is None else edit(operand)


def at_steps(good, bad, on: np.ndarray):
    """Return an operand that is `bad` at the calls where `on` [num_calls], else `good`."""
    if bad is good or on.all():
        return bad
    (goods, taken), (bads, of_bad) = (
        (each.alternatives, np.asarray(each.which)) if isinstance(each, Switch)
        else ((each,), np.zeros(len(on), np.int32))
        for each in (good, bad)
    )  # fmt: skip
    which = np.where(on, of_bad + len(goods), taken)
    return Switch((*goods, *bads), which.astype(np.int32))


def clipped(grid: ActivationGrid, left: float) -> ActivationGrid:
    """Return a grid of |left| of the range: without a zero point of both edges, else of the upper
    one where left is positive, of the lower one where it is negative.
    """
    if grid.scale is None:
        return grid
    share = jnp.float32(abs(left))
    if grid.zero_point is None:
        return dataclasses.replace(grid, scale=grid.scale * share)
    top = 2.0 ** jnp.asarray(grid.format.bits, jnp.float32) - 1  # unsigned codes begin at 0
    zero = jnp.asarray(grid.zero_point, jnp.float32)
    low, high = -zero, top - zero  # in scales
    low, high = (low, high * share) if left > 0 else (low * share, high)
    ratio = jnp.maximum(high - low, 1e-3) / top
    zero_point = jnp.clip(jnp.round(-low / ratio), 0, top)
    return dataclasses.replace(grid, scale=grid.scale * ratio,
                               zero_point=zero_point.astype(grid.zero_point.dtype))  # fmt: skip


def swapped(grid: ActivationGrid, other) -> ActivationGrid:
    """Return a grid with the zero point of another, as far as its codes go."""
    if grid.zero_point is None:
        return grid
    top = 2 ** jnp.asarray(grid.format.bits, jnp.int32) - 1
    zero_point = jnp.clip(jnp.asarray(other, jnp.int32), 0, top).astype(grid.zero_point.dtype)
    shape = jnp.shape(grid.zero_point)
    return dataclasses.replace(grid, zero_point=jnp.broadcast_to(zero_point, shape))


def next_zero_point(q: Quantized, site: str):
    """Return the zero point of the next site that has one."""
    names = list(q.site_inputs)
    place = names.index(site)
    for name in (*names[place + 1 :], *names[:place], site):
        for grid in grids_of(q.site_inputs[name]):
            if grid.zero_point is not None:
                return jnp.ravel(jnp.asarray(grid.zero_point))[0]
    return 0
