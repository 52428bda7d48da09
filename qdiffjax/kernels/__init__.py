"""Low precision that really runs: products and convolutions of codes, a reference beside each.

    matmul, conv    codes times codes (W8A8, W4A8, fp8), real times codes (W8A16, W4A16); a real
                    operand is rounded inside the kernel if an `Activation` says how; scales, bias
                    and activation function in the epilogue
    rounded         fake quantization in one pass over memory

Every one runs on several paths: `REFERENCE` (float32, a few lines), `XLA`, and kernels for TPU and
GPU. A platform has its default; `path=` overrides it.
"""

from qdiffjax.kernels.operands import Activation, narrow
from qdiffjax.kernels.ops import conv, matmul, rounded
from qdiffjax.kernels.paths import REFERENCE, XLA, Path

__all__ = ["REFERENCE", "XLA", "Activation", "Path", "conv", "matmul", "narrow", "rounded"]
