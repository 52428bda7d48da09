"""Certified bounds of the error of a quantized denoiser, for every input of a set at once.

    box(low, high) ── enclose(q, x, t) ──────────> eps, eps_hat - eps      one network call
                   └─ sample_tube(q, x_T, steps) ─> x_t, x_hat_t - x_t     a sampling run

`q` is the `precision.Quantized` that is simulated: its sites, weights, scales and clips are what is
enclosed. Certified, in real arithmetic: every x of the set, and every outcome of every rounding of
an activation within its bound, half a step to nearest or a step at random, in any combination and
different at every step. So for an activation quantizer the bound is the worst case over outcomes,
not what happens to one run; with quantized weights alone nothing is left to chance. The
enclosures are computed in float64 rounded outwards (forms.py). Not certified: what the float32
arithmetic of the networks' own programs adds, and an error of the library's tanh, exp, ... beyond
functions.ACCURACY, which is assumed.

    forms         sets of arrays: centre, symbols, radius
    functions     scalar functions enclosed by lines
    pairs         the float run and its difference to the quantized run, carried together
    primitives    a rule for each JAX primitive
    network       the interpreter
    sampler       errors through the steps of a sampler
"""

from qdiffjax.analysis.certificates.forms import Form, between, bounds, box, magnitude
from qdiffjax.analysis.certificates.network import enclose
from qdiffjax.analysis.certificates.pairs import Pair
from qdiffjax.analysis.certificates.sampler import Tube, sample_tube

__all__ = [
    "Form",
    "Pair",
    "Tube",
    "between",
    "bounds",
    "box",
    "enclose",
    "magnitude",
    "sample_tube",
]
