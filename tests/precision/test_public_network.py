"""What shaping gains on a public network that is not ours, and what is known of it beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from experiments.harness import subject
from qdiffjax import compiling, diffusion, precision
from qdiffjax.analysis.errors import prediction, runs, sequences
from tests.networks.models.layernorm_unet import NET, load, trained_arrays

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("users_defaults")]


@pytest.fixture(scope="module")
def world():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = load(trained_arrays())[1]
        eps_fn = lambda params, x, t: NET.apply(params, x, t)  # noqa: E731
        schedule = diffusion.linear(1000)
        denoiser = qd.Denoiser(diffusion.clipped(eps_fn, schedule), params, schedule, (28, 28, 1))
        steps = diffusion.ddim(schedule, 20)
        calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
        return calibration, steps, denoiser.draw(jax.random.key(5), 8, steps.t[0]).x_T


@pytest.fixture(scope="module")
def programs(world):
    """Error of runs, its prediction, the forecast over phases, and the forecast of the floor."""
    calibration, steps, x_T = world
    xs = subject.full_states(calibration.denoiser, x_T, steps)
    probes = runs.signs(jax.random.key(1), 2, x_T)
    rms = lambda values: float(np.sqrt(np.mean(np.square(values))))  # noqa: E731
    errors = compiling.compiled(lambda q: subject.final_errors(q, xs, steps))
    predicted = compiling.compiled(lambda q: prediction.predict_errors(q, xs, steps)[-1])
    variances = compiling.compiled(
        lambda q: sum(sequences.sequence_variances(q, x_T, steps, probes).values())
    )
    bias = compiling.compiled(lambda q: sequences.sequence_bias(
        q, x_T, steps, phases=jax.random.key(3), num=8
    ).value)  # fmt: skip

    def measure(bits):
        options = {"sites": subject.ALL_BUT_LAST}
        once = precision.quantize(calibration, f"W{bits}", **options)
        round_fn = precision.shaped(jax.random.key(0))
        q = precision.quantize(calibration, f"W{bits}", round_fn=round_fn, **options)
        told = {"once": rms(errors(once)), "shaped": rms(errors(q)), "predicted": rms(predicted(q)),
                "forecast": float(jnp.sqrt(jnp.mean(variances(q)) / x_T[0].size)),
                "floor": rms(bias(q))}  # fmt: skip
        return {name: value / told["shaped"] for name, value in told.items()}

    return measure


def test_shaping_gains_where_the_network_is_straight_and_its_forecasts_say_where(programs):
    """Relative to the error measured with sigma-delta weights: 10, 8 and 6 bits."""
    ten, eight, six = (programs(bits) for bits in (10, 8, 6))
    assert all(0.9 < told["predicted"] < 1.15 for told in (ten, eight, six))
    assert 8 < ten["once"] < 14
    assert 2 < eight["once"] < 3
    assert 1 < six["once"] < 1.2  # nothing is gained
    assert 0.85 < ten["forecast"] < 1.2
    assert 0.4 < eight["forecast"] < 0.7
    assert six["forecast"] < 0.4
    assert six["floor"] > 1.4 * six["forecast"]  # beforehand: what bends is the larger part
    assert ten["floor"] < 0.15 * ten["forecast"]
