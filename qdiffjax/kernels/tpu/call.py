"""One way to start a kernel: operands, their blocks and scratch memory by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qdiffjax._typing import Array


class Operand(NamedTuple):
    """An array, or the shape and dtype of a result, and the block of it that a step sees.

    at: step of the grid -> index of the block.
    """

    array: Any
    block: tuple[int, ...]
    at: Callable[..., tuple]

    def spec(self) -> pl.BlockSpec:
        """The block as Pallas takes it."""
        return pl.BlockSpec(self.block, self.at)


class Run(NamedTuple):
    """How kernels run.

    interpret: True, or pltpu.InterpretParams, for JAX's interpreter on any platform; vmem: bytes
    of vector memory allowed.
    """

    interpret: Any
    vmem: int


def call(
    body: Callable[[dict], None], grid: tuple[int, ...], operands: dict[str, Operand],
    out: Operand, run: Run, scratch: dict[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Run body(refs by name) for each step of the grid; "out" is the name of the result.

    Scratch keeps its contents along the last axis of the grid; steps of the others are independent.
    """
    scratch = scratch or {}
    names = [*operands, "out", *scratch]

    def kernel(*refs):
        body(dict(zip(names, refs, strict=True)))

    semantics: Any = ("parallel",) * (len(grid) - 1) + ("arbitrary" if scratch else "parallel",)
    return pl.pallas_call(
        kernel,
        out_shape=out.array,
        grid=grid,
        in_specs=[operand.spec() for operand in operands.values()],
        out_specs=out.spec(),
        scratch_shapes=list(scratch.values()),
        interpret=run.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics, vmem_limit_bytes=run.vmem
        ),
    )(*(operand.array for operand in operands.values()))
