"""Kernels for TPUs (Pallas, Mosaic): codes multiply at the rate of 8 bits, in one pass over memory.

    matmul       x real or codes, w codes; x becomes codes in vector memory
    conv         the same for images, as a product of shifted copies of the image
    rounded, stochastic_codes    rounding alone

`grid` says how much a kernel takes at a time and starts it, `prologue` rounds inside it, `products`
multiplies inside it. `interpret=True` runs them anywhere, by JAX's interpreter.
"""

from qdiffjax.kernels.tpu.convolutions import conv
from qdiffjax.kernels.tpu.elementwise import rounded, stochastic_codes
from qdiffjax.kernels.tpu.matrix_products import matmul
