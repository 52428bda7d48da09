"""Many recipes in one structure, so that they share every compilation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax.diffusion import Steps
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.rules import Series, SiteQuant, Switch
from qdiffjax.quant import ActivationGrid, FloatFormat


def alike(qs: Sequence[Quantized], steps: Steps) -> list[Quantized]:
    """Return the same quantized denoisers in one structure: what is jitted compiles once for all.

    What can be data becomes data: the width of integers, exponent and mantissa bits of floats,
    levels of codebooks, scales, weights. What cannot (dynamic or static scales, groups, the kind of
    a format) becomes alternatives of a `Switch`, the union of what the recipes have at a site: a
    recipe carries all of them, and which of its own each call takes. Their recorded widths and
    settings are left out.

    Args:
      qs: of one denoiser and rule.
      steps: the sampler, leaves [N].

    Raises:
      ValueError: none, or rules that differ; a recipe by step for another number of calls.
    """
    require(qs, "qs", got="none", expected="at least one quantized denoiser",
            remedy="quantize(calibration, recipe) of each recipe")  # fmt: skip
    require(all(q.rule == qs[0].rule for q in qs), "qs", got="several rules",
            expected="all simulated, or all lowered on one path",
            remedy="compare them in programs of their own")  # fmt: skip
    for q in qs:
        q.calls(steps)  # refuses other numbers of calls
    num = len(steps.t)
    tables: list[dict[str, SiteQuant]] = [{} for _ in qs]
    for name in dict.fromkeys(name for q in qs for name in q.site_inputs):
        sites = [q.site_inputs.get(name, SiteQuant()) for q in qs]
        weights = _operands([site.weight for site in sites], num)
        count = max(len(site.activations) for site in sites)
        columns = [
            _operands([site.activations[i] if i < len(site.activations) else None
                       for site in sites], num)
            for i in range(count)
        ]  # fmt: skip
        for k, table in enumerate(tables):
            around = _around(name, [site.around for site in sites])
            table[name] = SiteQuant(
                weights[k], tuple(column[k] for column in columns), around=around[k]
            )
    return [
        dataclasses.replace(q, site_inputs=table, widths=None)
        for q, table in zip(qs, tables, strict=True)
    ]


def _around(name: str, arounds: list) -> list:
    """Return what is done around a site's product by each, which is not made alike."""
    require(len({_kind(each) for each in arounds}) == 1, f"{name}, around its product",
            got="several structures", expected="one, such as the same cures for all",
            remedy="compare others in programs of their own")  # fmt: skip
    return arounds


def _operands(operands: Sequence[Any], num_calls: int) -> list[Any]:
    """Return one operand of every recipe in one structure."""
    rows = [_row(operand, num_calls) for operand in operands]
    kinds: dict[Any, int] = {}  # how many of a kind the richest recipe has
    samples: dict[Any, Any] = {}
    for alternatives, _ in rows:
        own: dict[Any, int] = {}
        for each in alternatives:
            kind = _kind(each)
            own[kind] = own.get(kind, 0) + 1
            samples[kind] = each
        for kind, count in own.items():
            kinds[kind] = max(kinds.get(kind, 0), count)
    if kinds == {_kind(None): 1}:
        return [None] * len(rows)
    return [_filled(*row, kinds, samples) for row in rows]


def _row(operand, num_calls: int) -> tuple[tuple, np.ndarray]:
    """Return the alternatives of an operand, with all that can be as data, and which are taken."""
    if isinstance(operand, Switch):
        which = np.asarray(operand.which)
        used, which = np.unique(which, return_inverse=True)
        return tuple(_as_data(operand.alternatives[k]) for k in used), which
    return (_as_data(operand),), np.zeros(num_calls, np.int32)


def _as_data(value: Any) -> Any:
    def grid_as_data(node):
        if not isinstance(node, ActivationGrid):
            return node
        format = node.format
        if isinstance(format, FloatFormat) and format.is_static:
            bits = (jnp.asarray(b, jnp.int32) for b in (format.exponent_bits, format.mantissa_bits))
            exponent, mantissa = bits
            bias = None if format.bias is None else jnp.asarray(format.bias, jnp.int32)
            format = FloatFormat(exponent, mantissa, format.kind, bias)
        return dataclasses.replace(node, format=format).with_bits_as_data()

    is_grid = lambda node: isinstance(node, ActivationGrid)  # noqa: E731
    made = jax.tree.map(grid_as_data, value, is_leaf=is_grid)
    if not isinstance(value, Series):
        return made
    num = max(len(leaf) for leaf in jax.tree.leaves(value) if jnp.ndim(leaf))
    spread = lambda leaf: leaf if jnp.ndim(leaf) else jnp.full(num, leaf)  # noqa: E731
    return jax.tree.map(spread, made)  # the bits of a dynamic grid, alike at all calls


def _kind(value: Any) -> Any:
    """Return what two values share whose arrays alone differ."""
    leaves, tree = jax.tree.flatten(value)
    return tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _filled(alternatives, which, kinds: dict, samples: dict) -> Any:
    """Return an operand with as many alternatives of each kind as the richest has."""
    filled: list[Any] = []
    places = [0] * len(alternatives)
    for kind, count in kinds.items():
        own = [k for k, each in enumerate(alternatives) if _kind(each) == kind]
        for i in range(count):
            if i < len(own):
                places[own[i]] = len(filled)
            filled.append(alternatives[own[min(i, len(own) - 1)]] if own else samples[kind])
    if len(filled) == 1:
        return filled[0]
    return Switch(tuple(filled), np.asarray(places, np.int32)[which])
