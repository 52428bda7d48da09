"""Gradient descent on numbers that decide how weights round."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def adam(
    loss_fn: Callable[[Any, Any], Any], first: Any, num_steps: int, learning_rate: float
) -> Any:
    """Return what Adam makes of `first`, a pytree, in steps of (values, step) -> loss.

    Kingma and Ba 2015, with the defaults of optax.
    """
    import optax

    optimizer = optax.adam(learning_rate)

    def body(carry, step):
        values, state = carry
        slope = jax.grad(loss_fn)(values, step)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies by Python numbers
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(values, updates), state), None

    (values, _), _ = jax.lax.scan(body, (first, optimizer.init(first)), jnp.arange(num_steps))
    return values
