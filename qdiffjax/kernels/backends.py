"""The ways to run one kernel, and which one a platform gets."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from qdiffjax.kernels import chip, reference, xla

if TYPE_CHECKING:
    from qdiffjax.kernels.tpu.grid import Blocks


@dataclasses.dataclass(frozen=True)
class Path:
    """One implementation of every kernel; pass it as `path=`.

    Attributes:
      name: for tables and errors.
      matmul, conv, rounded, stochastic_codes: with the signatures of `kernels.reference`.
      sums_last: whether kernels read a weight with the axes that are summed last: matrices as
        [N, K], windows as [N, h, w, K]; see `precision.stored`.
    """

    name: str
    matmul: Callable
    conv: Callable
    rounded: Callable
    stochastic_codes: Callable
    sums_last: bool = False


def _late(room: str, name: str) -> Callable:
    """Return a kernel of a room, imported when it first runs.

    Pallas takes a quarter of a second to import, and compilers for GPUs come and go with JAX.
    """

    def run(*args, **kwargs):
        return getattr(importlib.import_module(f"qdiffjax.kernels.{room}"), name)(*args, **kwargs)

    return run


def tpu_path(*, interpret: Any = False, blocks: "Blocks | None" = None) -> Path:
    """Return the kernels for TPUs, compiled or interpreted (on any platform, slowly).

    `blocks` says how much a kernel takes at a time; None looks the chip up.
    """
    matmul, conv, rounded, stochastic_codes = (
        functools.partial(_late("tpu", name), interpret=interpret, blocks=blocks)
        for name in ("matmul", "conv", "rounded", "stochastic_codes")
    )
    name = "tpu, interpreted" if interpret else "tpu"
    return Path(name, matmul, conv, rounded, stochastic_codes)


REFERENCE = Path(
    "reference", reference.matmul, reference.conv, reference.rounded, reference.stochastic_codes
)
XLA = Path("xla", xla.matmul, xla.conv, reference.rounded, reference.stochastic_codes)
TPU = tpu_path()
TPU_INTERPRETED = tpu_path(interpret=True)


GPU = Path(
    "gpu", _late("gpu", "matmul"), _late("gpu", "conv"),
    reference.rounded, reference.stochastic_codes,
    sums_last=True,
)  # fmt: skip


def default() -> Path:
    """Return path for the platform that JAX would run on; a TPU v4 multiplies no codes in kernels.

    GPUs other than Hopper get XLA.
    """
    if chip.is_hopper():
        return GPU
    if jax.default_backend() != "tpu":
        return XLA
    from qdiffjax.kernels.tpu.grid import kind_of_device

    return XLA if kind_of_device() in (None, "v4") else TPU
