"""How far the order of float sums alone moves a sampler: the yardstick of `bench_sampler`."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax.sites.products import Dot


def reordered(order: int):
    """The rule `quantize` with every sum in a random order of its own; 0 is the usual one."""

    def rule(site, op, operands, inputs):
        if site.product is None or order == 0:
            return precision.quantize_site(site, op, operands, inputs)

        def moved(*values):
            pairs = zip(values, _summed(site), strict=True)
            return op(*(_permuted(v, axes, order) for v, axes in pairs))

        return precision.quantize_site(site, moved, operands, inputs)

    return rule


def _permuted(x, axes: tuple[int, ...], seed: int):
    for axis in axes:
        n = x.shape[axis]
        x = jnp.take(x, np.random.default_rng((seed, n)).permutation(n), axis)
    return x


def _summed(site) -> tuple[tuple[int, ...], ...]:
    """Axes to permute in both operands so that the product stays: what is summed; channels."""
    product = site.product
    if isinstance(product, Dot):
        return product.contract
    return ((), ()) if product.feature_groups > 1 else ((product.lhs[1],), (product.rhs[1],))


def compared(x, orders: list) -> dict[str, Any]:
    """Distances of samples from simulations in several orders, and of those from each other."""
    pairs = [rms(a - b) for a, b in itertools.combinations(orders, 2)]
    return {
        "from_simulation": float(np.median([rms(x - v) for v in orders])),
        "two_orders": float(np.median(pairs)),
        "two_orders_range": (min(pairs), max(pairs)),
    }


def rms(x) -> float:
    """Root mean square of all elements."""
    return float(jnp.sqrt(jnp.mean(x**2)))
