"""Kernels for Hopper GPUs: codes multiply on the tensor cores, scales and the rest in one pass.

    matmul    codes times codes (Pallas, Mosaic GPU); bfloat16 times codes of 4 or 8 bits for few
              tokens (Pallas, Triton)
    conv      the same for images, as products of shifted rows of pixels

`products` and `few_tokens` are the kernels, `tiles` says how they cut their work. What they do not
take is XLA's, as is everything on other GPUs.
"""

from qdiffjax.kernels.gpu.convolutions import conv
from qdiffjax.kernels.gpu.matrix_products import matmul
