"""Static clips by range of calls, and the time path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, quant, strategies
from qdiffjax.strategies import activations
from tests import worlds
from tests.precision.small import STEPS, calibrated
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 4, 6, 6, 3)
KEY = jax.random.key(1)


def test_one_grid_is_that_of_least_squares_over_all_calls():
    done = strategies.improve(calibrated(), "A4", [strategies.static_clips()], STEPS, KEY,
                              x_T=NOISE, sites=("conv",))  # fmt: skip
    (grid,) = done.quantized().site_inputs["conv"].activations
    seen = activations.operand_numbers(done)["conv"][0]
    format = quant.IntFormat(4, signed=False)
    scale, zero = quant.mse(seen.reshape(-1), format=format, symmetric=False)
    assert_close(grid.scale, scale.squeeze(), factor=64)
    assert int(grid.zero_point) == int(zero.squeeze())


def test_grids_by_call_follow_the_operand():
    done = strategies.improve(calibrated(), "A4", [strategies.static_clips(5)], STEPS, KEY,
                              x_T=NOISE, num_calls=5, sites=("conv",))  # fmt: skip
    q = done.quantized()
    (series,) = q.site_inputs["conv"].activations
    assert isinstance(series, precision.Series)
    assert series.values.scale.shape == (5,)
    run = qd.diffusion.sample(precision.quantized_call(q), NOISE, STEPS, per_call=q.calls(STEPS))
    assert bool(jnp.all(jnp.isfinite(run.x_0)))


def test_a_range_without_a_state_is_refused():
    with pytest.raises(ValueError, match="num_calls=5"):
        strategies.improve(calibrated(), "A4", [strategies.static_clips(5)], STEPS, KEY, x_T=NOISE,
                           num_calls=2)  # fmt: skip


def test_clips_of_another_basis_are_refused():
    with pytest.raises(ValueError, match="choose one"):
        strategies.improve(calibrated(), "W8A8", [strategies.rotation(KEY),
                           strategies.static_clips()], STEPS, KEY, x_T=NOISE,
                           sites=("*",))  # fmt: skip


def world():
    params = {name: worlds.PARAMS[name].astype(jnp.float32) for name in worlds.PARAMS}
    params["layers"] = worlds.PARAMS["layers"].astype(jnp.float32)
    return qd.Denoiser(worlds.net_fn, params, worlds.SCHEDULE, (2,))


def test_the_time_path_is_what_no_sample_changes():
    denoiser = world()
    steps = qd.ddim(denoiser.schedule, 4)
    calibration = qd.calibrate(denoiser, steps, KEY)
    made = strategies.draft(calibration, "W4A8", steps, KEY, num_samples=3)
    assert activations.time_path(made) == ("time",)
    done = strategies.cached_time_path()(made)
    q = done.quantized()
    assert "time" in made.quantized().site_inputs
    assert "time" not in q.site_inputs
    assert "in" in q.site_inputs
    assert np.isfinite(np.asarray(qd.sample(q, steps, KEY, 2))).all()


def test_what_hangs_on_conditions_is_no_time_path_where_neighbours_have_the_same():
    """The first two samples are told apart by neither condition, and each by one sample alone."""
    eye = jnp.eye(4, dtype=jnp.float32)
    params = dict.fromkeys(("x", "time", "label", "scale"), eye)

    def net_fn(p, x, t, label, scale):
        time = jnp.full((1, 4), jnp.cos(t)) @ p["time"]
        return x @ p["x"] + time + eye[label] @ p["label"] + (scale * eye[:1]) @ p["scale"]

    cond = jnp.array([1, 1, 2, 1]), jnp.array([[0.5], [0.5], [0.5], [2.0]], jnp.float32)
    denoiser = qd.Denoiser(net_fn, params, worlds.SCHEDULE, (4,), cond=cond)
    steps = qd.ddim(denoiser.schedule, 2)
    calibration = qd.calibrate(denoiser, steps, KEY, num_samples=2)
    made = strategies.draft(calibration, "W4A8", steps, KEY, num_samples=4)
    assert activations.time_path(made) == ("time",)
    done = strategies.cached_time_path()(made)
    assert done.bill.evaluations - made.bill.evaluations == 3 * 2  # three samples, two states


@pytest.mark.parametrize("num_channels", [64, 48])
def test_numbers_of_an_operand_are_of_all_its_channels(num_channels):
    """An operand that is its channel's number: each is met about as often as the others."""
    channels = jnp.arange(num_channels, dtype=jnp.float32)
    eye = jnp.eye(num_channels, dtype=jnp.float32)
    denoiser = qd.Denoiser(
        lambda p, x, t: (0 * x + channels[None, None]) @ p["w"], {"w": eye},
        worlds.SCHEDULE, (100, num_channels),
    )  # fmt: skip
    steps = qd.ddim(denoiser.schedule, 2)
    calibration = qd.calibrate(denoiser, steps, KEY, num_samples=2)
    made = strategies.draft(calibration, "A4", steps, KEY, num_samples=2, sites=("w",))
    seen = np.asarray(activations.operand_numbers(made)["w"][0][0]).astype(int)
    counts = np.bincount(seen, minlength=num_channels)
    assert counts.min() > 0.5 * counts.mean()
    assert counts.max() < 2 * counts.mean()
