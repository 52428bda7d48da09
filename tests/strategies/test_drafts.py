"""Cures compose in one order, cost what they say, and are refused where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, strategies
from qdiffjax.strategies import states
from tests import foreign, worlds
from tests.precision.small import STEPS, calibrated
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 4, 6, 6, 3)
KEY = jax.random.key(1)


def draft(recipe="W4A8", **options):
    return strategies.draft(calibrated(), recipe, STEPS, KEY, x_T=NOISE, **options)


def test_a_draft_without_cures_is_the_recipe():
    q, plain = draft().quantized(), precision.quantize(calibrated(), "W4A8")
    assert q.site_inputs.keys() == plain.site_inputs.keys()
    for name, inputs in plain.site_inputs.items():
        assert_close(q.site_inputs[name].weight, inputs.weight)
    assert draft().bill.evaluations == 5 * 4


def test_cures_are_sorted_by_their_stages():
    cures = [strategies.gptq(), strategies.low_rank(1), strategies.clips(), strategies.smoothing()]
    done = strategies.improve(calibrated(), "W4A8", cures, STEPS, KEY, x_T=NOISE)
    names = ["smoothing .5", "rank 1", "clips by mse", "GPTQ"]
    assert [cure.name for cure in done.cures] == names
    whole = strategies.compose(cures)
    assert whole.name == " + ".join(names)
    again = whole(draft())
    for name, w in done.rounded.items():
        assert_close(again.rounded[name], w)
    assert again.bill.evaluations == done.bill.evaluations == 20 + 20 + 20
    assert done.bill.seconds > 0


def test_a_cure_out_of_order_is_refused():
    made = strategies.gptq()(draft())
    with pytest.raises(ValueError, match="compose"):
        strategies.smoothing()(made)


@pytest.mark.parametrize(
    ("cure", "fields", "said"),
    [(strategies.compensation(ridge=0.1), {"steps": qd.dpmpp_2m(worlds.SCHEDULE, 5)},
      "a sampler with memory.*joint_gaussian"),
     (strategies.bias_correction(by_call=True), {"num_calls": 3}, "all 5 of the sampler"),
     (strategies.bias_correction(), {"recipe": "W4A4 difference", "num_calls": 3}, "all 5 of"),
     (strategies.chosen_phases(2), {}, "no weight that is rounded anew"),
     (strategies.gptq(), {"recipe": "W4 shaped A8"}, "leave the word 'shaped' out"),
     (strategies.adaround(), {"recipe": "W:e4m3 A8"}, "conv: got weights as .*gptq"),
     (strategies.reconstruction(), {"recipe": "W:e4m3 A8"}, "conv: got weights as .*gptq"),
     (strategies.reconstruction(), {"recipe": "A8"}, "no weight that is rounded"),
     (strategies.learned_widths(4.0), {"recipe": "W:e4m3 A8"}, "expected symmetric integers"),
     (strategies.learned_widths(4.0), {"recipe": "A8"}, "no weight that is rounded"),
     (strategies.split_skips(), {}, "no product that reads a concatenation"),
     (strategies.low_rank(20), {}, "rank 20 of matrices of rank 5"),
     (strategies.static_clips(5), {"num_calls": 2}, "num_calls=5"),
     (strategies.static_clips(6), {}, "6 of 5 calls")],
    ids=["memory", "calls", "differences", "phases", "shaped", "codes", "codes of blocks",
         "blocks", "floats", "widths", "skips", "rank", "no state", "ranges"],
)  # fmt: skip
def test_what_a_cure_does_not_fit_is_refused_before_those_before_it_work(cure, fields, said):
    """A training of hours must not end with a refusal that the sampler alone decides."""
    worked = []
    long = strategies.Cure("long", 0, lambda draft: worked.append(draft) or draft)
    options = {"recipe": "W4A8", "steps": STEPS, "x_T": NOISE} | fields
    recipe, steps = options.pop("recipe"), options.pop("steps")
    with pytest.raises(ValueError, match=said):
        strategies.improve(calibrated(), recipe, [cure, long], steps, KEY, **options)
    assert not worked


@pytest.mark.parametrize(
    ("recipe", "cure", "said"),
    [("W4 A:mxfp8", strategies.static_clips(), "no activation whose scale can be static"),
     ("W4", strategies.static_clips(), "no activation whose scale can be static"),
     ("W4 A8 difference", strategies.static_clips(), "no activation whose scale can be static"),
     ("W4A8", strategies.low_rank(20), "rank 20 of matrices of rank 5 at most"),
     ("conv: W4A8", strategies.rotation(KEY), "odd numbers of channels at all 1 sites"),
     ("W4A8", strategies.reordering(), "neither groups nor blocks at 2 sites")],
)  # fmt: skip
def test_a_cure_that_would_change_nothing_is_refused(recipe, cure, said):
    with pytest.raises(ValueError, match=said):
        cure(draft(recipe))


def test_what_is_said_of_groups_that_divide_nothing_helps():
    """Groups of 16 of 5 channels: the remedy was to simulate what was simulated already."""
    recipe = "W:nvfp4 A8; conv out: W4A8"
    with pytest.raises(ValueError, match="a line of its own in the recipe: in: W4A8"):
        strategies.gptq()(draft(recipe))
    assert set(strategies.gptq()(draft(f"{recipe}; in: W4A8")).rounded) == {"conv", "in", "out"}


def test_a_network_without_a_time_path_is_told_so():
    with pytest.warns(precision.DiagnosisWarning, match="nothing changes"):
        strategies.cached_time_path()(draft())


@pytest.mark.parametrize(
    "cures",
    [[strategies.gptq(), strategies.adaround()], [strategies.ptqd(), strategies.compensation()]],
    ids=["roundings", "predictions"],
)
def test_two_that_decide_the_same_are_refused(cures):
    with pytest.raises(ValueError, match="choose one"):
        strategies.compose(cures)


def test_what_is_no_cure_is_refused():
    with pytest.raises(TypeError, match="smoothing"):
        strategies.compose(["gptq"])
    with pytest.raises(TypeError, match="Draft"):
        strategies.gptq()(calibrated())


def test_weights_that_change_by_step_are_refused():
    with pytest.raises(ValueError, match="a weight by step"):
        strategies.gptq()(draft("W4A8; steps 0: W8A8"))


@pytest.mark.parametrize(
    "cure", [strategies.gptq(), strategies.adaround(2), strategies.reconstruction(2, batch=2),
             strategies.qat(2, progress=False)], ids=lambda cure: cure.name,
)  # fmt: skip
def test_one_rounding_of_weights_in_a_basis_by_step_is_refused(cure):
    """It was in the basis of the first range, and was multiplied with activations of all."""
    with pytest.raises(ValueError, match=r"a weight by step.*smooth in one range"):
        cure(strategies.smoothing(num_ranges=2)(draft()))


def test_activations_that_change_by_step_are_kept():
    done = strategies.gptq()(draft("W4A4; steps 0: W4A8", num_calls=2))
    q = done.quantized()
    assert isinstance(q.site_inputs["in"].activations[0], precision.Switch)


def test_calls_are_spread_evenly_or_drawn():
    assert draft(num_calls=3).states.call.tolist() == [0, 2, 4]
    chances = np.array([0, 0, 1.0, 0, 0])
    assert draft(num_calls=3, chances=chances).states.call.tolist() == [2, 2, 2]
    law = states.normal_chances(qd.ddim(worlds.SCHEDULE, 40))
    share = np.asarray(qd.ddim(worlds.SCHEDULE, 40).t) / 40
    assert abs(np.sum(law * share) - 0.4) < 0.02
    assert_close(np.sum(law), 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"num_calls": 6}, "num_calls"), ({"num_samples": 1}, "num_samples"),
     ({"chances": np.zeros(5)}, "chances"), ({"chances": np.ones(3)}, "chances"),
     ({"recipe": "W4B8"}, "recipe"), ({"wrong": 1}, "options")],
)  # fmt: skip
def test_drafts_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        draft(**options)


def test_a_sampler_with_noise_looks_along_its_own_run():
    steps = qd.ddim(STEPS and worlds.SCHEDULE, 4, eta=1.0)
    calibration = precision.Calibration(
        calibrated().denoiser, calibrated().sites, calibrated().weights, calibrated().ranges
    )
    made = strategies.draft(calibration, "W4A8", steps, KEY, x_T=NOISE)
    run = qd.diffusion.sample(
        precision.full_call(precision.Quantized(calibrated().denoiser, {})), NOISE, steps, key=KEY
    )
    assert_close(made.states.x, run.states[:-1], factor=64)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["handwritten", "nnx_net", "eqx_net", "linen_layers"])
def test_cures_work_on_networks_of_any_framework(network):
    net = getattr(worlds, network)()
    denoiser = qd.Denoiser(net.fn, net.params, worlds.SCHEDULE, net.x.shape[1:])
    steps = qd.ddim(denoiser.schedule, 3)
    x_T = worlds.normal(5, 3, *denoiser.shape, dtype=net.x.dtype)
    calibration = qd.calibrate(denoiser, steps, x_T=x_T)
    cures = [strategies.smoothing(), strategies.rotation(KEY), strategies.low_rank(1),
             strategies.gptq(), strategies.bias_correction(),
             strategies.compensation()]  # fmt: skip
    for recipe in ("W4A8", "W16A16"):
        done = strategies.improve(calibration, recipe, cures, steps, KEY, x_T=x_T,
                                  sites=("*", "!input", "!output"))  # fmt: skip
        q = done.quantized()
        x_0 = qd.diffusion.sample(precision.quantized_call(q), x_T, steps,
                                  per_call=q.calls(steps)).x_0  # fmt: skip
        assert bool(jnp.all(jnp.isfinite(x_0)))
    exact = qd.diffusion.sample(precision.full_call(q), x_T, steps).x_0
    assert float(jnp.max(jnp.abs(x_0 - exact))) < 2e-2 * float(jnp.max(jnp.abs(exact)))


REFUSED = {
    "a function": lambda: strategies.compose([strategies.gptq]),
    "a cure alone": lambda: strategies.compose(strategies.gptq()),
    "letters": lambda: strategies.gptq(sites="w*")(draft()),
    "no such site": lambda: strategies.gptq(sites=("nothing*",))(draft()),
    "alpha": lambda: strategies.smoothing(1.5),
    "ranges": lambda: strategies.smoothing(num_ranges=0),
    "rank": lambda: strategies.low_rank(0),
    "full rank": lambda: strategies.low_rank(5, sites=("in",))(draft()),
    "damping": lambda: strategies.gptq(damping=-1.0),
    "seed": lambda: strategies.rotation(3),
    "unit": lambda: strategies.reconstruction(unit="layer"),
    "drop": lambda: strategies.reconstruction(drop=2.0),
    "clips": lambda: strategies.clips(3),
    "no function": lambda: strategies.correction("x", None),
    "target": lambda: strategies.correction("x", lambda y, wanted: None, "nowhere"),
    "over": lambda: strategies.compensation(over="row"),
    "ridge": lambda: strategies.joint_gaussian(ridge=-1.0),
    "static": lambda: strategies.static_clips(0),
    "bits of": lambda: strategies.stored_bits(draft().quantized()),
    "one sample": lambda: strategies.ceiling(np.zeros((1, 2))),
    "NaN": lambda: strategies.ceiling(np.full((3, 2), np.nan)),
    "no sampler": lambda: strategies.absorbed(5, np.zeros(5)),
    "negative": lambda: strategies.absorbed(qd.ddim(worlds.SCHEDULE, 5, eta=1.0), -np.ones(5)),
    "no width": lambda: strategies.normal_chances(STEPS, std=0.0),
    "a denoiser": lambda: strategies.draft(calibrated().denoiser, "W4A8", STEPS, KEY),
    "no steps": lambda: strategies.draft(calibrated(), "W4A8", 6, KEY),
    "no key": lambda: strategies.draft(calibrated(), "W4A8", STEPS, 3),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_in_words(call):
    with pytest.raises((TypeError, ValueError), match=r"got .*expected .*;"):
        call()


def drawn(key, num):
    """Conditions as a user's function draws them: no two keys alike."""
    return jax.random.randint(key, (num,), 0, 4)


CURES = {
    "none": [], "sites": [strategies.gptq(), strategies.bias_correction()],
    "prediction": [strategies.compensation(ridge=0.1)],
    "blocks": [strategies.reconstruction(num_steps=2, batch=2)],
    "training": [strategies.qat(2, objective=strategies.whole_run(num_samples=2), progress=False)],
}  # fmt: skip


@pytest.mark.parametrize("cures", CURES.values(), ids=CURES)
@pytest.mark.parametrize("cond", [drawn, jnp.arange(7) % 4], ids=["function", "labels"])
def test_what_is_cured_takes_the_conditions_that_its_user_gave(cures, cond):
    denoiser = foreign.of_vectors(foreign.takes_labels, foreign.LABELLED, cond=cond)
    calibration = qd.calibrate(denoiser, foreign.STEPS, KEY, num_samples=8)
    made = strategies.improve(calibration, "W8A8", cures, foreign.STEPS, KEY, num_samples=3,
                              sites=("*",))  # fmt: skip
    q = made.quantized()
    assert q.cond is cond
    key = jax.random.key(5)
    full = qd.sample(denoiser, foreign.STEPS, key, 7)
    error = jnp.sqrt(jnp.mean((qd.sample(q, foreign.STEPS, key, 7) - full) ** 2))
    of_others = full - qd.sample(q.given(q.denoiser.draw_cond(key, 7)[::-1]), foreign.STEPS, key, 7)
    assert error < 0.1 * jnp.sqrt(jnp.mean(of_others**2))
