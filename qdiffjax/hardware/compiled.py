"""What the compiler says that a program costs; nothing is run."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from qdiffjax._checks import FUNCTION, checked, require
from qdiffjax.labels import Kind


class CompiledCost(NamedTuple):
    """Cost of one compiled program on one device; bytes unless said otherwise.

    Attributes:
      flops: floating-point operations, two for a multiply-accumulate. A product with padding is
        not counted, and the body of a loop is counted once, however often it runs.
      accessed: bytes read and written between fused operations.
      arguments, outputs, temporaries: held in memory; `aliased` of the outputs are arguments too.
      platform: that it was compiled for.
    """

    flops: float
    accessed: float
    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    platform: str

    @property
    def kind(self) -> Kind:
        """Read from the compiler."""
        return Kind.COMPILED

    @property
    def peak(self) -> int:
        """Bytes that the program needs at once, its arguments and results among them."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


@checked(fn=FUNCTION)
def compiled_cost(fn: Callable, *args, **options) -> CompiledCost:
    """Compile fn(*args) for JAX's default backend and read its cost.

    Args:
      fn: a function, or one that `jax.jit` made (with its shardings and donations).
      args: arrays or `jax.ShapeDtypeStruct`.
      options: of the compiler, as `compiler_options` of `jax.jit`.

    Returns:
      The cost; with shardings that of one device.

    Raises:
      NotImplementedError: the backend does not tell.
    """
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    return read_cost(jitted.lower(*args).compile(options or None))


def read_cost(compiled) -> CompiledCost:
    """Read the cost of a program that `jax.jit(fn).lower(...).compile()` made; raises as above."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    require(
        cost and memory is not None, f"the compiler of {jax.default_backend()!r}",
        got="no cost of a program", expected="operations and memory", remedy="measure instead",
        error=NotImplementedError,
    )  # fmt: skip
    cost = cost[0] if isinstance(cost, list) else cost
    return CompiledCost(
        float(cost.get("flops", 0.0)), float(cost.get("bytes accessed", 0.0)),
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes,
        memory.alias_size_in_bytes, jax.default_backend(),
    )  # fmt: skip
