"""The ways to run one kernel, and which one a platform gets."""

import dataclasses
from collections.abc import Callable

import jax

from qdiffjax.kernels import reference, xla


@dataclasses.dataclass(frozen=True)
class Path:
    """One implementation of every kernel; pass it as `path=`.

    Attributes:
      name: for tables and errors.
      matmul, conv, rounded: with the signatures of `kernels.reference`.
    """

    name: str
    matmul: Callable
    conv: Callable
    rounded: Callable


REFERENCE = Path("reference", reference.matmul, reference.conv, reference.rounded)
XLA = Path("xla", xla.matmul, xla.conv, xla.rounded)


def default() -> Path:
    """Path for the platform that JAX would run on."""
    _ = jax.default_backend()
    return XLA
