"""Drafts in real low precision: codes as the cures have decided them."""

import dataclasses

import jax
import numpy as np
import pytest

from qdiffjax import diffusion, precision, strategies
from tests import worlds
from tests.precision.small import STEPS, lowered_calibration
from tests.tolerances import assert_close

NOISE = worlds.normal32(31, 4, 6, 6, 3)
KEY = jax.random.key(1)
SITES = ("conv", "in")


def made(cures, recipe="W4A8", **options):
    return strategies.improve(lowered_calibration(), recipe, cures, STEPS, KEY, x_T=NOISE,
                              **{"sites": SITES} | options)  # fmt: skip


CURES = {
    "none": [],
    "clips and GPTQ": [strategies.clips("mse"), strategies.gptq()],
    "static clips": [strategies.static_clips()],
    "clips by step, trained": [strategies.static_clips(5), strategies.qat(20, progress=False)],
}  # fmt: skip


def spelled_elsewhere():
    """A recipe whose ranges are those of another calibration, twice as wide."""
    wide = lowered_calibration().widened(2.0, [*lowered_calibration().ranges])
    return precision.spelled_out(wide, "W4A8", sites=SITES, activations="static")


LEAVE = strategies.Cure(
    "out in full", 4, lambda draft: dataclasses.replace(draft, plain=frozenset({"out"}))
)
DRAFTS = {
    **{name: lambda cures=cures: made(cures) for name, cures in CURES.items()},
    "static, with a margin": lambda: made([strategies.gptq()], activations="static"),
    "phases, rounded": lambda: made([strategies.gptq()], "W4A4; steps 0-1: W4A8"),
    "phases, left out": lambda: made([LEAVE], "W4A8; steps 0-1: W8A4", sites=("conv", "in", "out")),
    "ranges of its own": lambda: made([strategies.gptq()], spelled_elsewhere()),
}


@pytest.mark.parametrize("name", DRAFTS)
def test_codes_say_what_the_simulation_says(name):
    draft = DRAFTS[name]()
    x = []
    for q in (draft.quantized(), strategies.lower_draft(draft)):
        run = jax.jit(lambda q: diffusion.sample(
            precision.quantized_call(q), NOISE, STEPS, per_call=q.calls(STEPS)
        ).x_0)  # fmt: skip
        x.append(np.asarray(run(q)))
    assert precision.lowering_of(draft.calibration.sites, q.site_inputs)["in"] == "codes"
    assert_close(x[1], x[0], factor=256)


def test_what_is_around_a_product_is_no_code():
    with pytest.raises(ValueError, match="roundings alone"):
        strategies.lower_draft(made([strategies.smoothing()]))
