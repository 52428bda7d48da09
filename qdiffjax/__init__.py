"""Quantization error in diffusion models: measured, predicted and bounded.

    import jax, qdiffjax as qd

    denoiser = qd.load("fashion_unet")          # or qd.Denoiser(net_fn, params, schedule, shape)
    steps = qd.ddim(denoiser.schedule, 50)
    q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
    print(qd.study(q, steps, jax.random.key(1)))

The names are listed in `__init__.pyi` and load when they are used. They are stable: one that
changes keeps working, with a warning, for a minor version. What the rooms hold besides may change.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
