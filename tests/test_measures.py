"""What the front door measures, on a tiny conditional network whose samples differ."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import measures
from qdiffjax.analysis.errors import ledger
from tests import worlds

KEY = jax.random.key(3)
LABELS = jnp.asarray([2, 0, 1, 2, 1])
PARAMS = {
    "in": worlds.normal32(1, 4, 8, scale=0.5), "out": worlds.normal32(2, 8, 4, scale=0.05),
    "label": worlds.normal32(3, 3, 8),
}  # fmt: skip
SCHEDULE = qd.linear()


def net_fn(params, x, t, label):
    """Near E[eps | x] = sigma x of normal data, so that errors neither die nor explode."""
    h = jnp.tanh(x @ params["in"] + params["label"][label])
    return x * SCHEDULE(t).sigma + h @ params["out"]


DENOISER = qd.Denoiser(net_fn, PARAMS, SCHEDULE, (4,), cond=LABELS)
SAMPLERS = {
    "ddim": lambda: qd.ddim(DENOISER.schedule, 4),
    "ddpm": lambda: qd.ddpm(DENOISER.schedule, 4),
    "with memory": lambda: qd.dpmpp_2m(DENOISER.schedule, 4),
}


@functools.cache
def quantized(sampler="ddim", bits=5):
    steps = SAMPLERS[sampler]()
    calibration = qd.calibrate(DENOISER, steps, jax.random.key(0), num_samples=6)
    recipe = qd.Recipe({
        s.name: qd.SiteBits(bits if s.weight is not None else None, bits) for s in calibration.sites
    })  # fmt: skip
    return qd.quantize(calibration, recipe), steps


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_number_of_a_study_is_of_one_run(sampler):
    q, steps = quantized(sampler)
    study = qd.study(q, steps, KEY, 5, num_ledger=5, num_bound=5, progress=False)
    size = np.sqrt(4)
    np.testing.assert_allclose(study.error_rms[-1], study.measured.value, rtol=1e-5)
    assert study.measured.low <= study.measured.value <= study.measured.high
    final = study.bounded.measured[-1]
    np.testing.assert_allclose(np.sqrt(np.mean(final**2)) / size, study.measured.value, rtol=1e-4)
    total = np.mean(np.asarray(ledger.total(study.ledger)))
    np.testing.assert_allclose(total, study.measured.value**2, rtol=5e-3)
    np.testing.assert_allclose(study.samples_hat - study.samples,
                               study.ledger.x_hat_0 - study.ledger.x_0, atol=1e-5)  # fmt: skip
    assert all(row.holds for row in study.bounds)
    assert study.bounds[0].median <= study.bounds[1].median
    assert study.w2[0] <= study.w2[1] * (1 + 1e-5)
    assert (study.path_kl.value > 0) == (study.path_kl is not None)


def test_without_quantized_sites_both_runs_are_equal():
    steps = SAMPLERS["ddim"]()
    run = qd.couple(qd.Quantized(DENOISER, {}), steps, KEY, 5)
    np.testing.assert_array_equal(run.errors, 0)


@pytest.mark.slow
def test_samples_in_chunks_are_those_of_the_whole_batch():
    q, steps = quantized()
    whole, parts = (qd.couple(q, steps, KEY, 5, batch_size=size) for size in (5, 2))
    np.testing.assert_array_equal(parts.cond, LABELS)
    np.testing.assert_allclose(parts.xs, whole.xs, atol=1e-5)
    entries = [qd.attribute(q, steps, whole, batch_size=size) for size in (5, 2)]
    for name, expected in entries[0].contributions.items():
        np.testing.assert_allclose(entries[1].contributions[name], expected, atol=2e-4)


def test_a_sample_is_the_same_however_many_are_drawn_and_in_which_precision_they_began():
    steps = SAMPLERS["ddim"]()
    few, many = (qd.sample(DENOISER, steps, KEY, num) for num in (2, 5))
    np.testing.assert_allclose(few, many[:2], atol=1e-5)
    run = qd.couple(quantized()[0], steps, KEY, 2)
    np.testing.assert_allclose(run.xs[-1], few, atol=1e-5)
    again = qd.sample(DENOISER, steps, KEY, x_T=run.xs[0])
    np.testing.assert_allclose(again, few, atol=1e-5)


def test_another_label_is_another_sample():
    steps = SAMPLERS["ddim"]()
    x_T = jnp.ones((3, 4), jnp.float32)
    x_0 = qd.sample(DENOISER, steps, KEY, x_T=x_T)
    assert not np.allclose(x_0[0], x_0[1], atol=1e-3)


def test_prediction_and_propagation_are_of_the_run_that_is_given():
    q, steps = quantized()
    run = qd.couple(q, steps, KEY, 5)
    parts = qd.propagate(q, steps, run)
    assert parts.local_errors.shape == (4, 5, 4)
    np.testing.assert_array_equal(run.errors[0], 0)
    predicted = qd.predict(q, steps, run)
    np.testing.assert_allclose(
        predicted.errors[1], run.errors[1], atol=1e-5
    )  # nothing to assume yet
    bounded = qd.bound(q, steps, run, num_samples=None)
    assert bounded.measured.shape == (5, 5)


@pytest.mark.slow
def test_what_cannot_work_is_refused_before_it_starts():
    q, steps = quantized("ddpm")
    with pytest.raises(ValueError, match="got 5 samples in chunks, expected one chunk"):
        qd.couple(q, steps, KEY, 5, batch_size=2)
    with pytest.raises(ValueError, match="num_samples: got 0, expected at least 1"):
        qd.sample(DENOISER, steps, KEY, 0)
    broken = qd.Denoiser(lambda params, x, t: x / 0, {}, qd.linear(), (4,))
    with pytest.raises(ValueError, match="got full-precision samples with NaN"):
        qd.couple(qd.Quantized(broken, {}), steps, KEY, 2)
    with pytest.raises(ValueError, match="3 entries, expected one for each of 2 samples"):
        measures.program(measures._final, qd.precision.full_call)(
            qd.Quantized(DENOISER, {}).given(LABELS[:3]), jnp.ones((2, 4)), None, steps
        )


def test_a_second_width_compiles_nothing():
    q, steps = quantized()
    run = qd.couple(q, steps, KEY, 5)
    qd.attribute(q, steps, run)
    sizes = [p._cache_size() for p in (measures._compiled(measures._coupled),)]
    other, _ = quantized(bits=7)
    run = qd.couple(other, steps, KEY, 5)
    assert [p._cache_size() for p in (measures._compiled(measures._coupled),)] == sizes


def of_the_batch(site, op, operands, inputs):
    """A rule whose error has one sign in a batch and the other for a sample alone."""
    y = op(*operands)
    return (y if inputs is None else y + (0.05 if y.shape[0] > 1 else -0.05)), None


def test_a_ledger_of_other_samples_than_the_runs_warns():
    q, steps = quantized()
    other = dataclasses.replace(q, rule=of_the_batch)
    with pytest.warns(UserWarning, match="differ from the run's by [2-4].* times their error"):
        qd.attribute(other, steps, qd.couple(other, steps, KEY, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qd.attribute(q, steps, qd.couple(q, steps, KEY, 5), tolerance=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_of_shaped_weights_and_activations_by_step_is_whole(sampler):
    """Sequences, residuals and phases are seen by the run, its prediction, bounds and ledger."""
    steps = SAMPLERS[sampler]()
    calibration = qd.calibrate(DENOISER, steps, jax.random.key(0), num_samples=6)
    q = qd.quantize(calibration, "W6 shaped A6 shaped; steps 1: W8A8", sites=("*",))
    study = qd.study(q, steps, KEY, 5, progress=False)
    assert all(bound.holds for bound in study.bounds)
    assert float(np.median(ledger.defect(study.ledger))) < 1e-2
    run = qd.couple(q, steps, KEY, 5)
    x_hat_0 = steps.coeffs.current(run.xs_hat[-1])
    np.testing.assert_allclose(qd.sample(q, steps, KEY, 5), x_hat_0, atol=1e-5)
    predicted = qd.predict(q, steps, run)
    assert predicted.errors.shape == run.errors.shape
