"""How much a kernel takes at a time, and one way to start it: operands and scratch by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qdiffjax._typing import Array


class Blocks(NamedTuple):
    """Sizes of blocks, upper limits: a kernel takes less where the array or the memory is smaller.

    rows: of the left operand (tokens; pixels of a convolution); columns: of the right operand
    (output channels); vmem: bytes that a kernel may keep in the chip's vector memory.
    """

    rows: int
    columns: int
    vmem: int


MIB = 2**20
# Rows and columns: least cycles of W8A8 on a v5e, counted from the bundles that libtpu 0.0.42.1
# makes ahead of time (no device). In thousands, with static / dynamic scales, for x [4096, K] and
# w [K, N]; fewer rows where memory says so:
#   rows x columns   512x640        512x1280       256x1280
#   K 1280, N 1280    63.9 /  68.7   55.3 /  64.3   57.6 /  67.8
#   K 640,  N 640     21.8 /  23.1   the same       21.8 /  24.4
#   K 1280, N 5120   219.2 / 223.9  209.6 / 213.8  214.0 / 219.1
#   K 5120, N 1280   243.8 / 254.3  222.4 / 247.5  the same
# v5p, v6e and v7x take the same (1280 columns save 14 to 24 % of the first); v4, whose kernels
# multiply no codes, smaller ones that fit.
TABLE = {
    "v4": Blocks(256, 256, 14 * MIB),
    "v5e": Blocks(512, 1280, 40 * MIB),
    "v5p": Blocks(512, 1280, 40 * MIB),
    "v6e": Blocks(512, 1280, 40 * MIB),
    "v7x": Blocks(512, 1280, 40 * MIB),
}
DEFAULT = TABLE["v5e"]
KINDS = {"v4": "v4", "v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v5p": "v5p", "v6 lite": "v6e",
         "v6e": "v6e", "7x": "v7x", "v7x": "v7x", "7": "v7x"}  # fmt: skip


def kind_of_device() -> str | None:
    """Return the name in `TABLE` of the first device, or None."""
    kind = jax.devices()[0].device_kind
    return KINDS.get(kind.removeprefix("TPU").strip().lower())


def of_device() -> Blocks:
    """Return the blocks for the first device, or `DEFAULT` where that is no TPU of the table."""
    return TABLE.get(kind_of_device() or "", DEFAULT)


def fitted(limit: int, length: int, unit: int) -> int:
    """Return the size of a block: `length` if the limit allows, else the multiple of `unit` that
    wastes least.

    Each block costs what 64 more rows would, so that blocks do not become small to fit exactly.
    """
    if length <= limit:
        return length
    return min(range(unit, limit + 1, unit), key=lambda n: -(-length // n) * (n + 64))


class Operand(NamedTuple):
    """An array, or the shape and dtype of a result, and the block of it that a step sees.

    at: step of the grid -> index of the block.
    """

    array: Any
    block: tuple[int, ...]
    at: Callable[..., tuple]

    def spec(self) -> pl.BlockSpec:
        """Return the block as Pallas takes it."""
        return pl.BlockSpec(self.block, self.at)


def by_rows(a: Array, rows: int) -> Operand:
    """Return blocks of the first axis, for steps along the grid's first; one of 1 is shared."""
    rest = (0,) * (a.ndim - 1)
    if a.shape[0] == 1:
        return Operand(a, a.shape, lambda i, j: (0, *rest))
    return Operand(a, (rows, *a.shape[1:]), lambda i, j: (i, *rest))


def by_columns(a: Array, columns: int) -> Operand:
    """Return blocks of the last axis, for steps along the grid's second."""
    rest = (0,) * (a.ndim - 1)
    return Operand(a, (*a.shape[:-1], columns), lambda i, j: (*rest, j))


def call(
    body: Callable[[dict], None], grid: tuple[int, ...], operands: dict[str, Operand],
    out: Operand, interpret: Any, blocks: Blocks, scratch: dict[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Run body(refs by name) for each step of the grid; "out" is the name of the result.

    Scratch keeps its contents along the last axis of the grid; steps of the others are independent.
    `interpret` is True, or pltpu.InterpretParams, for JAX's interpreter on any platform.
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
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics, vmem_limit_bytes=blocks.vmem
        ),
    )(*(operand.array for operand in operands.values()))
