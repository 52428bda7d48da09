"""The products of a network, each to be run alone at the shapes that it has there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from qdiffjax.sites import Site, transform
from qdiffjax.sites.listing import expand
from qdiffjax.sites.transforming import Rule


class Product(NamedTuple):
    """A site that multiplies: its operation, and the shapes of its operands."""

    site: Site
    op: Callable
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    def operands(self, weight: Any = None) -> tuple[jax.Array, ...]:
        """Return random operands, with `weight` in its place if there is one."""
        keys = jax.random.split(jax.random.key(0), len(self.shapes))
        values = [jax.random.normal(k, s.shape, s.dtype)
                  for k, s in zip(keys, self.shapes, strict=True)]  # fmt: skip
        if weight is not None and self.site.weight is not None:
            values[self.site.weight] = weight
        return tuple(values)

    def under(self, rule: Rule) -> Callable:
        """Return (operands, inputs) -> result of the site under a rule."""
        return lambda operands, inputs: rule(self.site, self.op, operands, inputs)[0]


def products(eps_fn: Callable, *args) -> dict[str, Product]:
    """Return every product of eps_fn(*args) by the name of its site; nothing is computed.

    Args:
      eps_fn: (params, x, t, ...) -> eps.
      args: its arguments, or their shapes.
    """
    found: dict[str, Product] = {}

    def rule(site, op, operands, inputs):
        if site.product is not None:
            shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands)
            found.update({each.name: Product(each, op, shapes) for each in expand(site)})
        return op(*operands), None

    jax.eval_shape(transform(eps_fn, rule), *args)
    return found
