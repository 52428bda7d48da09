"""Noise shaping along the sampler: rounding whose error is high-pass in the number of the call.

A sampler integrates its network over N calls, so that it is a low-pass filter of what they commit.
A weight that is rounded once commits the same error at every call, the worst case. Rounded to one
of its two neighbours in turn, such that the mean over calls is the weight, it commits an error
r_i - r_{i+1} with |r| <= scale / 2. To first order, with G_i the gain of call i on the sample,

    error = sum_i G_i (r_i - r_{i+1}) = G_0 r_0 - G_{N-1} r_N + sum_{i >= 1} (G_i - G_{i-1}) r_i,

so that the variation of the gains along the run counts in place of their sum. Every product is
still of numbers of the recipe's width.
"""

import functools
import zlib
from collections.abc import Callable

import jax

from qdiffjax._checks import require
from qdiffjax._typing import Key
from qdiffjax.quant import (
    AlternatingCodes,
    Format,
    IntFormat,
    RoundingSequence,
    ToggleFn,
    alternating_codes,
    fake_quant_stochastic,
    rounding_sequence,
    sigma_delta,
    uniform_like,
)
from qdiffjax.sites import Site


def site_key(key: Key, name: str) -> Key:
    """Return the key of a site: no two have the same random bits."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def shaped(
    key: Key, toggle_fn: ToggleFn = sigma_delta, extra_bits: int | None = None
) -> Callable[..., RoundingSequence]:
    """Return the `round_fn` that gives a weight a rounding for each call of the sampler.

    Args:
      key: of the phases; each site has its own.
      toggle_fn, extra_bits: see `quant.rounding_sequence`. `lower` takes sigma-delta with extra
        bits, in integers: `quant.AlternatingCodes`.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> from qdiffjax import precision
      >>> params = {"in": jnp.array([[0.31, 1.0], [0.1, 0.2]]), "out": jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 100)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> q = qd.quantize(calibration, "W3", round_fn=precision.shaped(jax.random.key(1)))
      >>> codes = [q.site_inputs["in"].weight.at(i) for i in range(100)]
      >>> bool(jnp.all(abs(sum(codes) / 100 - params["in"]) < 0.01))  # half a step is 0.15
      True
    """

    def round_fn(site: Site, w, scale, zero_point, format: Format) -> RoundingSequence:
        own = site_key(key, site.name)
        return _sequence(w, scale, zero_point, format, own, toggle_fn, extra_bits)

    def codes_fn(site: Site, w, scale, zero_point, format: Format) -> AlternatingCodes:
        require(zero_point is None and isinstance(format, IntFormat), f"{site.name}, weight",
                got="an affine grid, or no integers", expected="symmetric integers that alternate",
                remedy="simulate it by `quantize`")  # fmt: skip
        assert isinstance(format, IntFormat)
        own = site_key(key, site.name)
        return alternating_codes(w, scale, format=format, key=own, extra_bits=extra_bits or 0)

    round_fn.__name__ = getattr(toggle_fn, "__name__", "a sequence of its own").replace("_", " ")
    if toggle_fn is sigma_delta and extra_bits is not None:
        round_fn.codes_fn = codes_fn  # type: ignore[attr-defined]  # of `lower`
    return round_fn


def stochastic_weights(key: Key) -> Callable[..., jax.Array]:
    """Return the `round_fn` that rounds a weight once, at random and without bias."""

    def round_fn(site: Site, w, scale, zero_point, format: Format) -> jax.Array:
        own = site_key(key, site.name)
        return fake_quant_stochastic(w, scale, zero_point, uniform_like(own, w), format=format)

    round_fn.__name__ = "stochastic"
    return round_fn


@functools.partial(jax.jit, static_argnums=(5, 6))
def _sequence(w, scale, zero_point, format, key, toggle_fn, extra_bits) -> RoundingSequence:
    return rounding_sequence(w, scale, zero_point, format=format, key=key, toggle_fn=toggle_fn,
                             extra_bits=extra_bits)  # fmt: skip
