"""Types shared by every subpackage."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any

# A denoiser: eps_fn(params, x, t) -> eps. x [batch, *shape], t [] or [batch], eps like x.
EpsFn = Callable[..., Any]

# A denoiser with its parameters bound, as samplers call it once per network call:
# call_fn(x, t, inputs) -> (eps, outputs). `inputs` and `outputs` are opaque pytrees.
CallFn = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]
