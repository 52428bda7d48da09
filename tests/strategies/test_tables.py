"""Drafts in real low precision: codes as the cures have decided them."""

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


def made(cures, recipe="W4A8"):
    return strategies.improve(lowered_calibration(), recipe, cures, STEPS, KEY, x_T=NOISE,
                              sites=SITES)  # fmt: skip


CURES = {
    "none": [],
    "clips and GPTQ": [strategies.clips("mse"), strategies.gptq()],
    "static clips": [strategies.static_clips()],
    "clips by step, trained": [strategies.static_clips(5), strategies.qat(20, progress=False)],
}  # fmt: skip


@pytest.mark.parametrize("name", CURES)
def test_codes_say_what_the_simulation_says(name):
    draft = made(CURES[name])
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
