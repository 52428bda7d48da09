"""What is said of quantization holds on a public network of time series that is not ours."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import qdiffjax as qd
from qdiffjax import strategies
from tests.networks.models import csdi

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("users_defaults")]
FRESH = jax.random.key(3)
NUM = 16


@pytest.fixture(scope="module")
def world():
    with (
        jax.enable_x64(False), jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):  # fmt: skip
        denoiser = csdi.denoiser()
        steps = qd.ddim(denoiser.schedule, 25)
        calibration = qd.calibrate(denoiser, steps, jax.random.key(0), num_samples=16)
        return calibration, steps, qd.sample(denoiser, steps, FRESH, NUM)


def median_error(world, q):
    """Median RMSE of samples of fresh noise and conditions, of signal 1 to 1.5."""
    _, steps, full = world
    errors = jnp.sqrt(jnp.mean((qd.sample(q, steps, FRESH, NUM) - full) ** 2, axis=(1, 2)))
    return float(jnp.median(errors))


def test_every_product_is_a_site_and_what_was_observed_is_kept(world):
    calibration, steps, _ = world
    denoiser = calibration.denoiser
    assert len([site for site in denoiser.sites() if site.weight is not None]) == 53
    cond = denoiser.draw_cond(FRESH, NUM)
    full = qd.sample(dataclasses.replace(denoiser, cond=cond), steps, FRESH, NUM)
    assert float(jnp.max(jnp.abs(cond["mask"] * (full - cond["observed"])))) < 1e-3
    assert 0.3 < float(jnp.std(full[cond["mask"] == 0])) < 1.5


def test_cures_and_shaped_weights_help_on_noise_and_conditions_that_they_have_not_seen(world):
    calibration, steps, _ = world
    plain = {words: median_error(world, qd.quantize(calibration, words))
             for words in ("W8A8", "W4A8", "W4 shaped A8")}  # fmt: skip
    assert 0.005 < plain["W8A8"] < 0.008
    assert 0.09 < plain["W4A8"] < 0.12
    assert 0.5 < plain["W4 shaped A8"] / plain["W4A8"] < 0.7

    def cured(*cures):
        made = strategies.improve(calibration, "W4A8", cures, steps, jax.random.key(9),
                                  num_samples=16, num_calls=25)  # fmt: skip
        return median_error(world, made.quantized()) / plain["W4A8"]

    assert 0.35 < cured(strategies.gptq()) < 0.55
    # What helps both networks that are ours harms here, by this draw of signs.
    assert cured(strategies.rotation(jax.random.key(1))) > 1.3


def test_integers_are_within_what_rounding_explains_and_a_wrong_scale_is_not(world):
    calibration, steps, _ = world
    q = qd.quantize(calibration, "W8A8")
    found = qd.verdict(q, qd.lower(calibration, "W8A8"), steps, jax.random.key(4), 8)
    assert not found.is_bug
    name = "residual_layers/2/mid_projection/weight"
    wrong = q.site_inputs[name]._replace(weight=1.1 * q.site_inputs[name].weight)
    bad = dataclasses.replace(q, site_inputs={**q.site_inputs, name: wrong})
    assert name in qd.verdict(q, bad, steps, jax.random.key(4), 8).sentence
