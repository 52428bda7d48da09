"""Everything that needs Flax: networks, checkpoints, data. `qdiffjax.training` trains them.

configs      ModelConfig: what a checkpoint's parameters fit, and the functions it describes
denoisers    trained networks on disk; `SHIPPED` ones lie in checkpoints/
data         images and labels
models       UNet, DiT, video, autoencoder; adapters of other frameworks' modules

Names are listed in `__init__.pyi` and load when they are used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
