"""Wrong calls of formats, roundings, calibration, packing and kernels."""

import functools

import jax.numpy as jnp
import numpy as np

from qdiffjax import kernels, quant
from qdiffjax.quant import noise
from tests.wrong_calls import (
    AT_LEAST_0,
    COUNT,
    FUNCTIONS,
    INF,
    KEYS,
    NAN,
    POSITIVE,
    SHARE,
    holed,
    not_finite,
)

F, U = quant.IntFormat(4), quant.IntFormat(4, signed=False)
X = holed((4, 6), 0.5)
S = jnp.full((1, 1), 0.25, jnp.float32)
Q = quant.quantize(X, S, format=F)
BITS = (99, 0, -3, 2.5, NAN, "8")
ELEMENTS = (np.zeros((4, 6), np.int32), "x", None, np.zeros((4, 6), np.complex64))
SCALES = (0 * S, -S, S * NAN, jnp.ones((3, 1), jnp.float32), None)
NO_FORMAT = (None, 8, "int8")
CALIBRATORS = ("absmax", "minmax", "percentile", "mse", "lp", "kl", "covering", "gaussian_clip",
               "laplace_clip", "dual_absmax", "lsq_init")  # fmt: skip


def calibrated(name, **options):
    return functools.partial(getattr(quant, name), X, format=F, **options)


ROWS = {
    **{f"{name}(x)": (lambda v, name=name: getattr(quant, name)(v, format=F),
                      (*not_finite(4, 6), np.zeros((0, 3), np.float32), *ELEMENTS))
       for name in CALIBRATORS},
    **{f"{name}(format)": (lambda v, name=name: getattr(quant, name)(X, format=v), NO_FORMAT)
       for name in CALIBRATORS},
    **{f"{name}(overhang)": (lambda v, name=name: calibrated(name, overhang=v)(), AT_LEAST_0)
       for name in ("absmax", "minmax", "percentile", "lp", "kl")},
    "absmax(scale)": (
        lambda v: quant.absmax(X, format=F, scale_shape=v), ((3, 1), (1,), 4, (1, 4))),
    "percentile(quantile)": (lambda v: calibrated("percentile", quantile=v)(), SHARE),
    "quantile_range(quantile)": (lambda v: quant.quantile_range(X, (1, 1), v), SHARE),
    "percentile_range(quantile)": (
        lambda v: quant.percentile_range(
            quant.histogram_observer(quant.percentile_range).init((1, 1)), quantile=v), SHARE),
    "lp(p)": (lambda v: calibrated("lp", p=v)(), POSITIVE),
    "lp(ratios)": (lambda v: calibrated("lp", ratios=v)(),
                   (np.zeros(3), np.array([NAN]), np.array([-1.0]), np.zeros(0), np.array([INF]))),
    "kl(num_bins)": (lambda v: calibrated("kl", num_bins=v)(), COUNT),
    "rms(multiple)": (lambda v: calibrated("rms", multiple=v)(), POSITIVE),
    "ternary_fit(ratio)": (lambda v: quant.ternary_fit(X, ratio=v), AT_LEAST_0),
    "ema_minmax(momentum)": (quant.ema_minmax, SHARE),
    "histogram_observer(num_bins)": (
        lambda v: quant.histogram_observer(quant.kl_range, num_bins=v), COUNT),
    "histogram_observer(finalize)": (quant.histogram_observer, FUNCTIONS),
    "running_minmax.update(x)": (
        lambda v: quant.running_minmax().update(quant.running_minmax().init((1, 1)), v),
        not_finite(4, 6)),
    "IntFormat(bits)": (quant.IntFormat, BITS),
    "FloatFormat(exponent_bits)": (lambda v: quant.FloatFormat(v, 3), BITS),
    "FloatFormat(mantissa_bits)": (lambda v: quant.FloatFormat(4, v), (99, -1, 2.5, NAN)),
    "LogFormat(bits)": (quant.LogFormat, BITS),
    "LogFormat(base_exponent)": (lambda v: quant.LogFormat(4, v), POSITIVE),
    "CodebookFormat(values)": (quant.CodebookFormat,
                               ((1.0, 0.0), (1.0,), (0.0, NAN), (0.0, INF), "ab")),
    "block_float(mantissa_bits)": (lambda v: quant.block_float(v, 16), BITS),
    "block_float(block_size)": (lambda v: quant.block_float(3, v), COUNT),
    "effective_bits(group_size)": (lambda v: quant.effective_bits(F, group_size=v), COUNT),
    "effective_bits(scale_bits)": (
        lambda v: quant.effective_bits(F, group_size=16, scale_bits=v), AT_LEAST_0),
    "fake_quant(x)": (lambda v: quant.fake_quant(v, S, format=F), ELEMENTS),
    "fake_quant(scale)": (lambda v: quant.fake_quant(X, v, format=F), SCALES),
    "fake_quant(format)": (lambda v: quant.fake_quant(X, S, format=v), NO_FORMAT),
    "fake_quant(zero_point)": (lambda v: quant.fake_quant(X, S, v, format=F),
                               (jnp.zeros((1, 4), jnp.int32), S * NAN, "x")),
    "quantize(x)": (lambda v: quant.quantize(v, S, format=F), (*ELEMENTS, holed((4, 6), NAN))),
    "quantize(scale)": (lambda v: quant.quantize(X, v, format=F), SCALES),
    "dequantize(q)": (quant.dequantize, (None, X)),
    "fake_quant_stochastic(uniform)": (
        lambda v: quant.fake_quant_stochastic(X, S, None, v, format=F), (X[:2], None)),
    "fake_quant_codes(qmin, qmax)": (
        lambda v: quant.fake_quant_codes(X, S, None, *v), ((7, -7), (NAN, 7), (-7, NAN))),
    "fake_quant_fractional(bits)": (
        lambda v: quant.fake_quant_fractional(X, S, jnp.full((1, 1), v, jnp.float32)),
        (0.0, -1.0, NAN, 99.0)),
    "fake_quant_lsq(grad_scale)": (
        lambda v: quant.fake_quant_lsq(X, S, format=F, grad_scale=v), AT_LEAST_0),
    "fake_quant_pact(format)": (lambda v: quant.fake_quant_pact(X, S, format=v), (F, None)),
    "keep_sums(sum_shape)": (
        lambda v: quant.keep_sums(X, S, format=F, sum_shape=v), ((3, 1), (1,), None)),
    "adaround_schedule(num_steps)": (lambda v: quant.adaround_schedule(0, v), COUNT),
    "adaround_schedule(warmup)": (lambda v: quant.adaround_schedule(0, 9, warmup=v),
                                  (-0.1, 1.0, NAN, INF)),
    "adaround_schedule(start)": (lambda v: quant.adaround_schedule(0, 9, start=v), POSITIVE),
    "adaround_regularizer(beta)": (
        lambda v: quant.adaround_regularizer(X, v), (0.0, -1.0, NAN, INF)),
    "kmeans_codebook(bits)": (lambda v: quant.kmeans_codebook(X, v), BITS),
    "kmeans_codebook(tolerance)": (lambda v: quant.kmeans_codebook(X, 2, tolerance=v), AT_LEAST_0),
    "kmeans_codebook(max_steps)": (lambda v: quant.kmeans_codebook(X, 2, max_steps=v), COUNT),
    "kmeans_codebook(x)": (lambda v: quant.kmeans_codebook(v, 2), not_finite(4, 6)),
    "kmeans_codebook(weights)": (lambda v: quant.kmeans_codebook(X, 2, weights=v),
                                 (-jnp.ones_like(X), jnp.ones(3), *not_finite(4, 6))),
    "quantile_codebook(bits)": (lambda v: quant.quantile_codebook(X, v), BITS),
    "lloyd_max(bits)": (quant.lloyd_max, BITS),
    "per_channel(channel_axis)": (lambda v: quant.per_channel(X, v), (2, -3, 1.5, "x", None)),
    "per_group(axis)": (lambda v: quant.per_group(X, v, 2), (2, -3)),
    "per_group(group_size)": (lambda v: quant.per_group(X, 1, v), (*COUNT, 4)),
    "pack_codes(bits)": (lambda v: quant.pack_codes(Q.codes, v), BITS),
    "pack_codes(codes)": (lambda v: quant.pack_codes(v, 4), (X, None, jnp.int32(3))),
    "unpack_codes(bits)": (
        lambda v: quant.unpack_codes(jnp.zeros(3, jnp.uint8), v, True, (6,)), BITS),
    "unpack_codes(packed)": (
        lambda v: quant.unpack_codes(v, 4, True, (6,)), (jnp.zeros(4, jnp.uint8), X, None)),
    "pack(q)": (quant.pack, (None, X)),
    "unpack(p)": (quant.unpack, (None, Q)),
    "footprint(q)": (quant.footprint, (None, X)),
    "uniform_like(key)": (lambda v: quant.uniform_like(v, X), KEYS),
    "triangular_like(key)": (lambda v: quant.triangular_like(v, X), KEYS),
    "ternary(threshold)": (lambda v: quant.ternary(X, v), (-S, S * NAN)),
    "activation_grid(low, high)": (
        lambda v: quant.activation_grid(*map(jnp.float32, v), U), ((1.0, 0.0), (NAN, 1), (0, INF))),
    "power_of_two(scale)": (quant.power_of_two, SCALES[:3]),
    "noise.Gaussian(std)": (noise.Gaussian, POSITIVE),
    "noise.Gaussian(mean)": (lambda v: noise.Gaussian(1.0, v), (NAN, INF, "x")),
    "noise.Laplace(std)": (noise.Laplace, POSITIVE),
    "noise.predict(scale)": (lambda v: noise.predict(F, v, noise.Gaussian()), POSITIVE),
    "noise.predict(zero_point)": (
        lambda v: noise.predict(F, 1.0, noise.Gaussian(), zero_point=v), (NAN, INF, "x")),
    "noise.predict(format)": (lambda v: noise.predict(v, 1.0, noise.Gaussian()), NO_FORMAT),
    "noise.predict_error(x)": (lambda v: noise.predict_error(v, S, format=F),
                               (*not_finite(4, 6), np.zeros((0, 3)), None)),
    "noise.predict_error(scale)": (lambda v: noise.predict_error(X, v, format=F), SCALES[:4]),
    "noise.panter_dite_mse(bits)": (
        lambda v: noise.panter_dite_mse(v, noise.Gaussian()), AT_LEAST_0),
    "noise.shannon_mse(bits)": (lambda v: noise.shannon_mse(v, noise.Gaussian()), AT_LEAST_0),
    "noise.histogram(per_octave)": (lambda v: noise.histogram(X, per_octave=v), COUNT),
    "noise.histogram(num_atoms)": (lambda v: noise.histogram(X, num_atoms=v), (-1, 2.5, NAN)),
    "noise.Histogram(masses)": (
        lambda v: noise.Histogram(np.arange(3.0), v), (np.ones(3), -np.ones(2), np.zeros(2),
                                                       np.array([NAN, 1.0]))),
    "kernels.matmul(x)": (lambda v: kernels.matmul(v, QW), (
        X[:, :3], None, jnp.zeros((4, 6), jnp.int32))),
    "kernels.matmul(w)": (lambda v: kernels.matmul(X, v), (None, X.T)),
    "kernels.conv(strides)": (lambda v: kernels.conv(IMAGE, KERNEL, strides=v), (
        (0, 1), (-1, 1), (1,), (1.5, 1))),
    "kernels.conv(padding)": (lambda v: kernels.conv(IMAGE, KERNEL, padding=v), (
        "SAMEE", ((0, 0),), 3)),
    "kernels.conv(feature_group_count)": (
        lambda v: kernels.conv(IMAGE, KERNEL, feature_group_count=v), (0, -1, 2, 1.5)),
    "kernels.stochastic_codes(bits)": (
        lambda v: kernels.stochastic_codes(X, S, v, format=F), (X, None, jnp.zeros(3, jnp.uint32))),
    "kernels.rounded(scale)": (lambda v: kernels.rounded(X, v, format=F), SCALES),
}  # fmt: skip
QW = quant.quantize(holed((6, 5), 0.5), S, format=F)
IMAGE = holed((1, 4, 4, 3), 0.5)
KERNEL = quant.quantize(holed((3, 3, 3, 2), 0.5), S[None, None], format=F)
