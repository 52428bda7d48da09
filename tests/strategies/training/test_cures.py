"""Training while rounding: better on noise not seen, resumable, and refused where it cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import diffusion, precision, strategies, training
from tests import worlds
from tests.precision.small import STEPS, calibrated, denoiser, lowered_calibration
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 8, 6, 6, 3)
FRESH = worlds.normal(9, 16, 6, 6, 3)
KEY = jax.random.key(1)
pytestmark = pytest.mark.usefixtures("compile_fast")
SITES = ("conv", "in", "out")


def made(cures, recipe="W3A6", **options):
    options = {"sites": SITES} | options
    return strategies.improve(calibrated(), recipe, cures, STEPS, KEY, x_T=NOISE, **options)


def qat(num_steps=150, **options):
    return strategies.qat(num_steps, progress=False, **options)


@jax.jit
def run(q):
    return diffusion.sample(precision.quantized_call(q), FRESH, STEPS,
                            per_call=q.calls(STEPS)).x_0  # fmt: skip


def error(draft):
    full = precision.Quantized(denoiser(), {})
    return float(jnp.linalg.norm(run(draft.quantized()) - run(full)))


WAYS = {
    "weights and scales": ("W3A6", {}, []),
    "gains": ("W3A6", {"objective": strategies.distillation("gains")}, []),
    "whole run": ("W3A6", {"objective": strategies.whole_run()}, []),
    "propagated": ("W3A6", {"objective": strategies.propagated()}, []),
    "low rank": ("W3A6", {"rank": 2}, []),
    "clips": ("W3A3", {}, [strategies.static_clips()]),
    "clips alone": ("A3 static", {"learn": ("activations",)}, []),
    "levels": ("W:ternary A8", {}, []),
    "after GPTQ in another basis": ("W3A6", {}, [strategies.smoothing(), strategies.gptq()]),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_trained_samples_err_less_on_other_noise(name):
    recipe, options, cures = WAYS[name]
    before, done = made(cures, recipe), made([*cures, qat(**options)], recipe)
    assert error(done) < 0.9 * error(before)
    assert done.bill.optimizer_steps == 150
    (losses,) = done.losses.values()
    assert losses.shape == (50,)
    assert np.isfinite(losses).all()


def test_weights_stay_on_their_grid():
    done = made([qat(60, learn=("weights",))])
    for name, grid in done.weight_grids().items():
        codes = done.rounded[name] / grid.scale
        assert_close(codes, jnp.round(codes), factor=64, scale=4.0)
        assert int(jnp.max(jnp.abs(jnp.round(codes)))) == 3


def test_sites_that_are_not_named_stay_as_the_cures_before_left_them():
    """The hybrid: GPTQ everywhere, training at one site."""
    before, done = made([strategies.gptq()]), made([strategies.gptq(), qat(60, sites=("in",))])
    for name in ("conv", "out"):
        assert_close(done.rounded[name], before.rounded[name])
    assert float(jnp.max(jnp.abs(done.rounded["in"] - before.rounded["in"]))) > 0


def test_what_is_not_better_is_not_taken_and_said_so():
    before = made([])
    with pytest.warns(precision.DiagnosisWarning, match="distillation, uniform: not better"):
        done = made([qat(1, learning_rate=100.0)])
    inputs = done.quantized().site_inputs
    for name, each in before.quantized().site_inputs.items():
        assert_close(inputs[name].weight, each.weight)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    cure = qat(20, directory=tmp_path, save_every=5)
    whole = made([qat(20, save_every=5)])
    make = training.make_train_step

    def interrupted(*args):
        step, calls = make(*args), []

        def one(*own):
            if len(calls) == 12:
                raise KeyboardInterrupt
            calls.append(None)
            return step(*own)

        return one

    with monkeypatch.context() as patch:
        patch.setattr(training, "make_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made([cure])
    done = made([cure])
    for name, w in whole.rounded.items():
        np.testing.assert_array_equal(np.asarray(done.rounded[name]), np.asarray(w))
    with pytest.raises(ValueError, match="does not fit"):
        made([cure], "W4A6")


def test_all_that_reads_a_quantized_denoiser_reads_a_trained_one():
    done = strategies.improve(lowered_calibration(), "W4A8", [qat(20)], STEPS, KEY, sites=SITES,
                              num_samples=4)  # fmt: skip
    q = done.quantized()
    coupled = qd.couple(q, STEPS, jax.random.key(2), 4)
    ledger = qd.attribute(q, STEPS, coupled)
    total = sum(jnp.sum(c, 1) for c in ledger.contributions.values())
    assert float(jnp.max(jnp.abs(total - ledger.change) / jnp.abs(ledger.change))) < 0.1
    missed = qd.predict(q, STEPS, coupled).errors[-1] - coupled.errors[-1]
    assert float(jnp.linalg.norm(missed)) < 0.8 * float(jnp.linalg.norm(coupled.errors[-1]))
    assert "training: distillation, uniform" in q.settings.weights


def own(loss_fn):
    task = strategies.Task(loss_fn, jnp.zeros(1), (), 1)
    return strategies.Objective("own", 1, lambda draft: task)


def test_a_loss_that_becomes_nan_stops_the_training():
    def loss_fn(q, key, batch):
        w = q.site_inputs["in"].weight
        here = jnp.sum(jnp.abs(w - jax.lax.stop_gradient(first)))
        return jnp.sum(w**2) * jnp.where(here > 0, jnp.nan, 1.0)

    first = made([]).quantized().site_inputs["in"].weight
    with pytest.raises(FloatingPointError, match="learning rate"):
        made([qat(60, objective=own(loss_fn), learning_rate=0.3)])
    with pytest.raises(FloatingPointError, match="before training"):
        made([qat(60, objective=own(lambda q, key, batch: jnp.asarray(jnp.nan)))])


WRONG = {
    "steps": (lambda: strategies.qat(0), "num_steps"),
    "rank": (lambda: strategies.qat(rank=0), "rank"),
    "rate": (lambda: strategies.qat(learning_rate=-1), "learning_rate"),
    "words": (lambda: strategies.qat(learn=("biases",)), "learn"),
    "clip": (lambda: strategies.qat(clip="relu"), "clip"),
    "dynamic grids": (lambda: made([qat(learn=("activations",))]), "static_clips"),
    "no rounded weight": (lambda: made([qat()], "A6"), "static_clips"),
    "no such site": (lambda: made([qat(sites=("nothing",))]), "nothing"),
    "by step": (lambda: made([qat()], "W4A4; steps 0-1: W8A4"), "by step"),
    "anew": (lambda: made([qat()], "W4 shaped A4"), "anew"),
    "order": (lambda: strategies.gptq()(qat(1)(made([]))), "stages"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_trained_is_refused(name):
    make, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        make()


def test_an_objective_is_no_word():
    with pytest.raises(TypeError, match="distillation"):
        strategies.qat(objective="distillation")
    with pytest.raises(TypeError, match="tuple"):
        strategies.qat(learn="weights")
