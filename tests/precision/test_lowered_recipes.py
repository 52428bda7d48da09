"""Recipes of any format in real low precision."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax._tables import number
from tests.precision.small import (
    STEPS,
    X_T,
    lowered_calibration,
)

LOWERED = (
    "W4A8", "W:e4m3 A:e4m3", "W:e5m2 A:e4m3 static", "W2A8", "W:nf4 A8", "W:e2m1 A8", "W8 A:mxfp8",
    "W4A8; steps 0-1: W8A8", "W8A8; steps 2: float; steps 4: W:e4m3 A:e4m3", "W8 A8 by-step",
    "W:nvfp4 A8", "W:mxfp6 A:mxfp8; steps 0: W4g7 A8", "W8 A8 2-ranges",
    "W8 A8 token; out in: W:mxfp4g5 A8", "W4g5 A8",
)  # fmt: skip


ALTERNATING = {"round_fn": precision.shaped(jax.random.key(3), extra_bits=4)}


@pytest.mark.parametrize(
    ("recipe", "rounding"),
    [*((r, {}) for r in LOWERED if "mxfp4g5" not in r),
     *((r, ALTERNATING) for r in ("W4A8", "W3", "W4A8; steps 0-1: float", "W4g6 A8",
                                  "W3g8; steps 0-1: float"))],
)  # fmt: skip
def test_a_lowered_recipe_is_the_simulation(recipe, rounding):
    sites = ("in", "out") if "g5" in recipe else ("*",)
    c32 = lowered_calibration()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", precision.DiagnosisWarning)
        low = precision.lower(c32, recipe, sites=sites, **rounding)
    simulated = precision.quantize(c32, recipe, sites=sites, **rounding)
    x_T = X_T.astype(jnp.float32)
    run = jax.jit(lambda q: diffusion.sample(precision.quantized_call(q), x_T, STEPS,
                                             per_call=q.calls(STEPS)).states)  # fmt: skip
    states, same = run(low), run(simulated)
    # Sums in another order flip some codes: two runs of one recipe, not two recipes.
    full = diffusion.sample(precision.full_call(low), x_T, STEPS).states
    lost = float(jnp.linalg.norm(same[-1] - full[-1]))
    assert float(jnp.linalg.norm(states[1] - same[1])) < 1e-3 * float(jnp.linalg.norm(same[1]))
    assert float(jnp.linalg.norm(states[-1] - same[-1])) < 0.5 * lost


def test_codes_that_alternate_multiply_codes_and_are_stored_in_whole_bytes():
    c32 = lowered_calibration()
    q = precision.lower(c32, "W4A8", sites=("*",), **ALTERNATING)
    assert precision.lowering_of(c32.sites, q.site_inputs)["in"] == "codes"
    weight = q.site_inputs["in"].weight
    assert weight.fine.nbytes == c32.weights["in"].size  # 4 + 4 bits
    assert weight.seed.nbytes == 4
    megabytes = sum(w.size for w in c32.weights.values()) / 1e6  # a byte each
    assert f"codes that alternate are stored in {number(megabytes)} MB" in " ".join(str(q).split())
    anew = " ".join(str(precision.quantize(c32, "W4 shaped")).split())
    assert "those rounded anew at every call are stored as they are" in anew
    with pytest.raises(ValueError, match="round_fn without codes"):
        precision.lower(c32, "W4A8", round_fn=precision.shaped(jax.random.key(3)))


def test_codes_that_alternate_in_groups_of_a_kernel_are_the_simulation_at_every_call():
    c32 = lowered_calibration()
    with pytest.warns(precision.DiagnosisWarning, match="groups end inside of what is summed"):
        low = precision.lower(c32, "W4g6", sites=("*",), **ALTERNATING)
    simulated = precision.quantize(c32, "W4g6", sites=("*",), **ALTERNATING)
    for name in ("conv", "in", "out"):
        ours, theirs = (q.site_inputs[name].weight for q in (low, simulated))
        for call in (0, 1, 3):
            got = ours.at(call).unpacked(jnp.float32)
            np.testing.assert_array_equal(got, theirs.at(call))
    assert "codes that alternate are stored in" in " ".join(str(low).split())


def test_what_is_unpacked_is_named_before_work():
    with pytest.warns(precision.DiagnosisWarning, match="codes of the weight are unpacked"):
        q = precision.lower(lowered_calibration(), "W:nf4 A8", sites=("in", "out"))
    ways = precision.lowering_of(lowered_calibration().sites, q.site_inputs)
    assert ways["in"] == "simulated: codes of the weight are unpacked"
    with pytest.warns(precision.DiagnosisWarning, match="groups end inside of what is summed"):
        rows = precision.lower(lowered_calibration(), "W:nvfp4 A8", sites=("in", "conv"))
    assert rows.site_inputs["conv"].weight.held.codes.shape == (5, 2, 16)  # 27 of each channel
    by_turns = precision.lower(lowered_calibration(), "W8A8; steps 0: float", sites=("in",))
    assert precision.lowering_of(lowered_calibration().sites, by_turns.site_inputs)["in"] == (
        "codes | plain"
    )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("W4 shaped", "'shaped' in real low precision"),
        ("W4 stochastic", "'stochastic' in real low precision"),
        ("W4A8 shaped", "error feedback at"),
        ("W8A4 difference", "got differences at"),
        ("W16A8", "got 16 bits, expected 2..8"),
    ],
)
def test_what_cannot_be_lowered_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        precision.lower(lowered_calibration(), recipe, sites=("*",))
