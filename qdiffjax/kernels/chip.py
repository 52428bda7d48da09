"""Which GPU this is."""

import jax


def is_hopper() -> bool:
    """Whether JAX runs on a GPU with the tensor cores that these kernels speak to."""
    if jax.default_backend() != "gpu":
        return False
    return getattr(jax.devices()[0], "compute_capability", None) == "9.0"


def num_cores() -> int:
    """Multiprocessors of the GPU, those of an H100 where there is none."""
    return getattr(jax.devices()[0], "core_count", 132) if is_hopper() else 132
