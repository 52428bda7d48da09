"""Kernels for TPUs (Pallas, Mosaic): codes multiply at the rate of 8 bits, in one pass over memory.

    matmul       x real or codes, w codes; x becomes codes in vector memory
    conv         the same for images, as a product of shifted copies of the image
    rounded, stochastic_codes    rounding alone

`call` starts a kernel, `prologue` rounds inside it, `products` multiplies inside it, `blocks` says
how much it takes at a time. `interpret=True` runs them anywhere, by JAX's interpreter.
"""

from qdiffjax.kernels.tpu.conv import conv
from qdiffjax.kernels.tpu.matmul import matmul
from qdiffjax.kernels.tpu.quantize import rounded, stochastic_codes

__all__ = ["conv", "matmul", "rounded", "stochastic_codes"]
