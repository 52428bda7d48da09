"""Which chip this is, where a kernel depends on it."""

import functools

import jax
import numpy as np


def is_hopper() -> bool:
    """Whether JAX runs on a GPU with the tensor cores that these kernels speak to."""
    if jax.default_backend() != "gpu":
        return False
    return getattr(jax.devices()[0], "compute_capability", None) == "9.0"


def num_cores() -> int:
    """Return the multiprocessors of the GPU, those of an H100 where there is none."""
    return getattr(jax.devices()[0], "core_count", 132) if is_hopper() else 132


@functools.cache
def multiplies_unsigned() -> bool:
    """Whether codes multiply faster here as unsigned times signed bytes than as two signed ones.

    So it is on CPUs that have VNNI (for numpy AVX512_CLX or _ICL) alone. Those who have AMX too
    (AVX512_SPR) have signed products as fast, and an int8 convolution that uses them.
    """
    extensions = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    has_vnni = not {"AVX512_CLX", "AVX512_ICL"}.isdisjoint(extensions)
    return has_vnni and "AVX512_SPR" not in extensions
