"""Bits at the sites: recipes, the rule that quantizes, calibration, real low precision.

    denoiser ── calibrate ──> Calibration(sites, weights, ranges)
                                   │
                     Recipe ──> quantize, simulated ──> Quantized(site_inputs) ──> quantized_call
                          └───> lower, the same with codes that multiply codes

Names are listed in `__init__.pyi` and load when they are used, so that a ledger loads no kernel.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
