"""Denoising networks in plain Flax, without a word of quantization.

Names are listed in `__init__.pyi` and load when they are used, so that no one else loads Flax.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
