"""What is minimised: loops written out, gains in closed form, and the survey's eq. 12."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision, strategies
from qdiffjax.denoiser import Denoiser
from tests import worlds
from tests.precision.small import STEPS, calibrated, denoiser
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 4, 6, 6, 3)
KEY = jax.random.key(1)
EYE = {"w": jnp.eye(3, dtype=jnp.float32)}


def made(recipe="W4A6", calibration=None, steps=STEPS, **options):
    calibration = calibrated() if calibration is None else calibration
    return strategies.draft(calibration, recipe, steps, KEY, **options)


def loss_of(objective, draft, q=None):
    task = objective.task(draft)
    batch = jax.tree.map(lambda a: a[: objective.batch_size], task.examples)
    q = draft.quantized() if q is None else q
    return task.loss_fn(q, KEY, batch, *task.fixed)


@pytest.mark.parametrize("along", ["own", "float"])
def test_distillation_is_the_teachers_word_along_a_run(along):
    draft = made(x_T=NOISE)
    weights = np.array([0.5, 0.0, 2.0, 1.0, 0.25])
    found = loss_of(strategies.distillation(weights, num_samples=3, along=along), draft)
    q, full = draft.quantized(), denoiser()
    x, total = full.draw(KEY, 3).x_T.astype(NOISE.dtype), 0.0
    for i in range(5):
        t, coeffs = STEPS.times(x)[i], jax.tree.map(lambda a: a[i], STEPS.coeffs)  # noqa: B023
        eps, eps_hat = full.eps_fn(full.params, x, t), precision.quantized_call(q)(x, t)[0]
        total += weights[i] * jnp.mean((eps_hat - eps) ** 2)
        x = coeffs.x * x + coeffs.eps * (eps_hat if along == "own" else eps)
    assert_close(found, total, factor=1e4)


def test_the_whole_runs_loss_is_the_error_of_the_sample():
    draft = made(x_T=NOISE)
    found = loss_of(strategies.whole_run(num_samples=3), draft)
    x_T = denoiser().draw(KEY, 3).x_T.astype(NOISE.dtype)
    q = draft.quantized()
    calls = precision.full_call(q), precision.quantized_call(q)
    x_0, x_hat_0 = (diffusion.sample(call, x_T, STEPS).x_0 for call in calls)
    assert_close(found, jnp.mean((x_hat_0 - x_0) ** 2), factor=1e4)


SAMPLERS = {"ddim": STEPS, "2m": diffusion.dpmpp_2m(denoiser().schedule, [160, 120, 80, 40, 1])}


@pytest.mark.parametrize("name", SAMPLERS)
def test_gains_of_a_linear_network_are_what_its_errors_do(name):
    """An error d of call i alone moves the sample by G_i d, where eps = a x."""
    steps, a = SAMPLERS[name], 0.3
    net_fn = lambda params, x, t: x @ params["w"]  # noqa: E731
    linear = Denoiser(net_fn, {"w": a * jnp.eye(3)}, denoiser().schedule, (3,))
    x_T = worlds.normal(2, 4, 3)
    calibration = precision.calibrate(linear, steps, x_T=x_T)
    draft = made("W8", calibration, steps, x_T=x_T, sites=("*",))
    num = len(steps.t)

    def final(bumps):
        call = lambda x, t, bump, state: (a * x + bump, None, state)  # noqa: E731
        return diffusion.sample(call, x_T, steps, per_call=bumps).x_0

    at_zero = final(jnp.zeros(num))
    expected = [jnp.mean((final(jnp.eye(num)[i]) - at_zero) ** 2) for i in range(num)]
    found = strategies.measured_gains(draft)
    assert_close(found, np.array(expected), factor=1e4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_propagated_error_of_a_linear_network_is_that_of_the_sample(name):
    """First order is all there is, at whatever states."""
    steps = SAMPLERS[name]
    w = worlds.normal(8, 3, 3, scale=0.3).astype(jnp.float32)
    linear = Denoiser(lambda params, x, t: x @ params["w"], {"w": w}, denoiser().schedule, (3,))
    x_T = worlds.normal32(2, 4, 3)
    draft = made("W3A4", precision.calibrate(linear, steps, x_T=x_T), steps, x_T=x_T,
                 sites=("w",))  # fmt: skip
    found = [loss_of(o, draft) for o in (strategies.propagated(), strategies.whole_run())]
    assert_close(*found, factor=1e3)
    assert float(found[0]) > 0


def test_less_the_float_loss_it_has_the_same_derivative_and_is_the_penalty():
    """Survey, eq. 12: the difference does not depend on the roundings, and is zero without any."""
    draft, images = made(x_T=NOISE), worlds.normal(3, 16, 6, 6, 3)
    both = [strategies.denoising(images, batch_size=8, num_times=4, less_full=on)
            for on in (False, True)]  # fmt: skip
    q = draft.quantized()
    w = q.site_inputs["in"].weight

    def at(objective, w):
        inputs = {**q.site_inputs, "in": q.site_inputs["in"]._replace(weight=w)}
        return loss_of(objective, draft, precision.Quantized(q.denoiser, inputs, q.rule))

    values, slopes = zip(*(jax.value_and_grad(lambda w, o=o: at(o, w))(w) for o in both),
                         strict=True)  # fmt: skip
    assert_close(slopes[0], slopes[1], factor=64)
    others = [at(o, 0.5 * w) for o in both]
    assert_close(values[0] - values[1], others[0] - others[1], factor=64)
    plain = precision.Quantized(q.denoiser, {})
    assert_close(loss_of(both[1], draft, plain), 0.0, scale=1.0)
    assert_close(loss_of(both[0], draft, plain), values[0] - values[1], factor=64)


def test_a_network_that_answers_zero_has_the_variance_of_the_noise_as_loss():
    silent = Denoiser(lambda params, x, t: 0 * x @ params["w"], EYE, denoiser().schedule, (3,))
    draft = made(
        "W8",
        precision.calibrate(silent, STEPS, x_T=NOISE[:, 0, 0].astype(jnp.float32)),
        sites=("*",),
    )
    objective = strategies.denoising(worlds.normal(3, 4000, 3), batch_size=4000, num_times=4)
    assert abs(float(loss_of(objective, draft)) - 1) < 5 * (2 / 12000) ** 0.5


def test_conditions_are_those_of_their_samples():
    """A network that adds its condition: the teacher is asked with the same one."""

    def net_fn(params, x, t, label):
        return x @ params["w"] + 100 * label[:, None]

    cond = lambda key, num: jax.random.uniform(key, (num,), jnp.float32)  # noqa: E731
    own = Denoiser(net_fn, EYE, denoiser().schedule, (3,), cond=cond)
    calibration = precision.calibrate(own, STEPS, KEY, num_samples=4, progress=False)
    draft = made("W8", calibration, num_samples=4, sites=("*",))
    images, labels = worlds.normal(3, 8, 3), jnp.zeros(8, jnp.float32)
    with_data = strategies.denoising(images, labels, batch_size=8, less_full=True)
    for objective in (strategies.distillation(), strategies.whole_run(), with_data):
        assert abs(float(loss_of(objective, draft))) < 1e-3


WRONG = {
    "weights": (lambda: strategies.distillation("adjoint"), "weights"),
    "negative": (lambda: strategies.distillation([-1.0]), "weights"),
    "number": (lambda: strategies.distillation([1.0]).task(made(x_T=NOISE)), "5 numbers"),
    "no weight": (lambda: strategies.distillation([0.0] * 5).task(made(x_T=NOISE)), "not all zero"),
    "along": (lambda: strategies.distillation(along="both"), "along"),
    "samples": (lambda: strategies.whole_run(num_samples=0), "num_samples"),
    "times": (lambda: strategies.denoising(NOISE, batch_size=6, num_times=4), "multiple"),
    "images": (lambda: strategies.denoising(NOISE[:, :3]).task(made(x_T=NOISE)), "encode"),
    "conditions": (
        lambda: strategies.denoising(NOISE, jnp.zeros(4)).task(made(x_T=NOISE)), "takes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name):
    make, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        make()
