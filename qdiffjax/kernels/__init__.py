"""Low precision that really runs: products and convolutions of codes, a reference beside each.

    matmul, conv    codes times codes (W8A8, W4A8, fp8), real times codes (W8A16, W4A16); a real
                    operand is rounded inside the kernel if a `quant.ActivationGrid` says how;
                    scales, bias and activation function in the epilogue
    rounded         fake quantization in one pass over memory
    stochastic_codes    rounding at random, with given bits

Every one runs on several paths: `REFERENCE` (float32, a few lines), `XLA`, and kernels for TPU and
GPU. A platform has its default; `path=` overrides it. Whatever the path, derivatives are those of
the simulation with `quant.fake_quant`, forward and reverse.
"""

from qdiffjax.kernels.backends import GPU, REFERENCE, TPU, TPU_INTERPRETED, XLA, Path, tpu_path
from qdiffjax.kernels.operands import (
    FLOAT8,
    Native,
    Summed,
    check_format,
    is_multiplied,
    mark_missing,
    missing,
    narrow,
    native,
    quantized,
    rounded_codes,
    summed,
)
from qdiffjax.kernels.ops import conv, matmul, rounded, stochastic_codes
