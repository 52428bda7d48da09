"""Every function of quant refuses what it cannot mean: got, expected, and a remedy."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import quant
from qdiffjax.quant import noise

F, U = quant.IntFormat(4), quant.IntFormat(4, signed=False)
X = jnp.linspace(-1, 1, 24, dtype=jnp.float32).reshape(4, 6)
S = jnp.full((1, 1), 0.25, jnp.float32)
ZEROS = jnp.zeros_like(X)
LEVELS = jnp.asarray([-1.0, 0.0, 1.0], jnp.float32)

QUANTIZERS = {
    "quantize": lambda x, s: quant.quantize(x, s, format=F),
    "quantization_error": lambda x, s: quant.quantization_error(x, s, format=F),
    "fake_quant": lambda x, s: quant.fake_quant(x, s, format=F),
    "fake_quant float": lambda x, s: quant.fake_quant(x, s, format=quant.E2M1),
    "fake_quant codebook": lambda x, s: quant.fake_quant(x, s, format=quant.nf4()),
    "fake_quant_codes": lambda x, s: quant.fake_quant_codes(x, s, None, -7, 7),
    "stochastic": lambda x, s: quant.fake_quant_stochastic(x, s, None, ZEROS, format=F),
    "subtractive": lambda x, s: quant.fake_quant_subtractive(x, s, None, ZEROS, format=F),
    "learned codebook": lambda x, s: quant.fake_quant_codebook(x, s, LEVELS),
    "dual": lambda x, s: quant.fake_quant_dual(x, s, S, format=F),
    "dual, positive": lambda x, s: quant.fake_quant_dual(x, S, s, format=F),
    "lsq": lambda x, s: quant.fake_quant_lsq(x, s, format=F),
    "lsq plus": lambda x, s: quant.fake_quant_lsq_plus(x, s, 0 * S, format=U),
    "pact": lambda x, a: quant.fake_quant_pact(x, a, format=U),
    "pact residual": lambda x, a: quant.fake_quant_pact_residual(x, a, format=U),
    "fractional": lambda x, c: quant.fake_quant_fractional(x, c, jnp.full((1, 1), 3.5)),
    "parametric": lambda x, s: quant.fake_quant_parametric(x, s, jnp.ones((1, 1), jnp.float32)),
    "parametric, clip": lambda x, c: quant.fake_quant_parametric(x, S, c),
    "adaround": lambda x, s: quant.fake_quant_adaround(x, s, ZEROS, format=F),
    "adaround_init": quant.adaround_init,
    "predict_error": lambda x, s: noise.predict_error(x, s, format=F),
}  # fmt: skip
NO_SCALES = {
    "zero": 0 * S, "negative": -S, "NaN": S * jnp.nan, "infinite": S * jnp.inf,
    "that does not divide": jnp.ones((1, 4), jnp.float32), "of rank 1": jnp.ones(1, jnp.float32),
}  # fmt: skip


@pytest.mark.parametrize("scale", NO_SCALES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_no_quantizer_takes_a_scale(name, scale):
    with pytest.raises(ValueError, match=r"got(.|\n)*expected(.|\n)*"):
        QUANTIZERS[name](X, NO_SCALES[scale])


CALIBRATORS = {
    name: functools.partial(getattr(quant, name), format=F)
    for name in ("absmax", "minmax", "percentile", "mse", "lp", "kl", "covering", "gaussian_clip",
                 "laplace_clip", "dual_absmax", "lsq_init", "lsq_plus_weight_init")
} | {
    "rms": functools.partial(quant.rms, format=F, multiple=3.0),
    "binary_fit": quant.binary_fit, "ternary_fit": quant.ternary_fit,
    "lsq_plus_activation_init": functools.partial(quant.lsq_plus_activation_init, format=U),
}  # fmt: skip


@pytest.mark.parametrize("name", CALIBRATORS)
def test_no_calibrator_takes_integers_or_groups_that_do_not_divide_or_nan(name):
    calibrate = CALIBRATORS[name]
    with pytest.raises(TypeError, match="x: got int64, expected a real floating dtype; cast"):
        calibrate(jnp.arange(24).reshape(4, 6), scale_shape=None)
    with pytest.raises(ValueError, match="expected the same rank and every axis a divisor"):
        calibrate(X, scale_shape=(1, 4))
    with pytest.raises(ValueError, match="got NaN or infinity"):
        calibrate(X.at[0, 0].set(jnp.nan), scale_shape=None)


def test_bins_momentum_and_quantile_are_checked():
    with pytest.raises(ValueError, match="num_bins"):
        quant.histogram_observer(quant.kl_range, num_bins=0)
    with pytest.raises(ValueError, match="momentum"):
        quant.ema_minmax(1.5)
    state = quant.histogram_observer(quant.percentile_range).init((1, 1))
    for run in (lambda: quant.percentile(X, format=F, quantile=1.5),
                lambda: quant.quantile_range(X, (1, 1), -0.1),
                lambda: quant.percentile_range(state, quantile=1.5)):  # fmt: skip
        with pytest.raises(ValueError, match="quantile: got"):
            run()


INTEGERS = jnp.arange(24).reshape(4, 6)
REAL_ONLY = QUANTIZERS | {
    "fake_quant_block": lambda x, s: quant.fake_quant_block(x, quant.block_float(3, 2)),
    "quantize_block": lambda x, s: quant.quantize_block(x, quant.block_float(3, 2)),
    "block_scale": lambda x, s: quant.block_scale(x, quant.block_float(3, 2)),
    "quantize_gradient": lambda x, s: quant.quantize_gradient(x, format=F),
    "kmeans_codebook": lambda x, s: quant.kmeans_codebook(x, 2),
    "quantile_codebook": lambda x, s: quant.quantile_codebook(x, 2),
}
del REAL_ONLY["predict_error"]  # of numpy arrays, which may be anything real


@pytest.mark.parametrize("name", REAL_ONLY)
def test_no_quantizer_takes_integers(name):
    with pytest.raises(TypeError, match="x: got int64, expected a real floating dtype; cast"):
        REAL_ONLY[name](INTEGERS, S)


@pytest.mark.parametrize(("make", "error"), [
    (lambda: quant.IntFormat(0), ValueError), (lambda: quant.IntFormat(17), ValueError),
    (lambda: quant.IntFormat(4.0), TypeError), (lambda: quant.IntFormat(True), TypeError),
    (lambda: quant.IntFormat(jnp.asarray([1, 4])), ValueError),
    (lambda: quant.FloatFormat(0, 3), ValueError), (lambda: quant.FloatFormat(9, 3), ValueError),
    (lambda: quant.FloatFormat(4, 24), ValueError), (lambda: quant.FloatFormat(4, 3.0), TypeError),
    (lambda: quant.FloatFormat(4, 3, "posit"), ValueError),
    (lambda: quant.LogFormat(0), ValueError), (lambda: quant.LogFormat(4, 0.3), ValueError),
    (lambda: quant.CodebookFormat((1.0, 0.0)), ValueError),
    (lambda: quant.CodebookFormat((0.0, 0.0, 1.0)), ValueError),
    (lambda: quant.CodebookFormat((0.0, np.inf)), ValueError),
    (lambda: quant.CodebookFormat((1.0,)), ValueError),
    (lambda: quant.CodebookFormat(jnp.arange(4)), TypeError),
    (lambda: quant.fake_quant_codebook(X, S, LEVELS[::-1]), ValueError),
    (lambda: quant.BlockFormat(F, 0, quant.floor_scale), ValueError),
    (lambda: quant.block_float(0, 16), ValueError), (lambda: quant.block_float(3, -1), ValueError),
    (lambda: quant.fake_quant_block(X, quant.MXFP4), ValueError),
    (lambda: quant.quantize_block(X, quant.NVFP4), ValueError),
    (lambda: quant.fake_quant_block(X, quant.block_float(3, 2), axis=2), ValueError),
    (lambda: quant.per_group(X, 1, 4), ValueError), (lambda: quant.per_group(X, 1, 0), ValueError),
    (lambda: quant.per_group(X, 2, 1), ValueError), (lambda: quant.per_channel(X, 2), ValueError),
    (lambda: quant.effective_bits(F, group_size=0), ValueError),
    (lambda: quant.lloyd_max(0), ValueError), (lambda: quant.lloyd_max(2.0), ValueError),
    (lambda: quant.quantize(X.at[0, 0].set(jnp.nan), S, format=F), ValueError),
    (lambda: quant.fake_quant(X, S, jnp.zeros((1, 4), jnp.int32), format=F), ValueError),
    (lambda: quant.fake_quant(X, S, jnp.zeros((1, 1), jnp.int32), format=quant.E2M1), ValueError),
    (lambda: quant.power_of_two(-S), ValueError), (lambda: quant.power_of_two(0 * S), ValueError),
    (lambda: quant.scale_at(-S, 4 * S), ValueError), (lambda: quant.bit_width(S, -S), ValueError),
    (lambda: quant.fake_quant_fractional(X, S, 0 * S), ValueError),
    (lambda: quant.fake_quant_stochastic(X, S, None, ZEROS[:2], format=F), ValueError),
    (lambda: quant.fake_quant_adaround(X, S, ZEROS[:2], format=F), ValueError),
    (lambda: quant.adaround_schedule(0, 0), ValueError),
    (lambda: quant.fake_quant_codes(X, S, None, 7, -7), ValueError),
    (lambda: quant.scale_from_range(S, -S, qmin=-7, qmax=7, symmetric=True), ValueError),
    (lambda: quant.scale_from_range(-S, S, qmin=7, qmax=-7, symmetric=False), ValueError),
    (lambda: quant.rms(X, format=F, multiple=-1.0), ValueError),
    (lambda: quant.ternary_fit(X, ratio=-0.5), ValueError),
    (lambda: quant.mse(X, format=F, ratios=np.zeros(3)), ValueError),
    (lambda: quant.lp(X, format=F, p=0.0), ValueError),
    (lambda: quant.kl(X, format=F, num_bins=0), ValueError),
])  # fmt: skip
def test_bits_levels_groups_and_parameters_out_of_range_are_refused(make, error):
    with pytest.raises(error, match=r"got(.|\n)*expected"):
        make()
