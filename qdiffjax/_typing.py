"""Types shared by every subpackage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
PyTree = Any

# A denoiser: eps_fn(params, x, t) -> eps. x [batch, *shape], t [] or [batch], eps like x.
EpsFn = Callable[..., Any]

# A denoiser with its parameters bound, as samplers call it once per network call:
# call_fn(x, t, inputs, state) -> (eps, outputs, state). `inputs` and `outputs` are opaque pytrees;
# `state` is what a call carries to the next one (residuals, cached features), () for nothing.
CallFn = Callable[..., tuple[Array, PyTree, PyTree]]


def float_dtype(x) -> Any:
    """Return the dtype to compute in: float64 stays, other floats float32, else JAX's default."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.result_type(float)
    return dtype if dtype == jnp.float64 else jnp.dtype(jnp.float32)
