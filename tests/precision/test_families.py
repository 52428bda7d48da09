"""Recipes in one structure: the same samples, one compilation."""

import jax
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from tests.precision.small import STEPS, X_T, quantized

RECIPES = (
    "W4A8", "W:e2m1 A:e4m3", "W4A4; steps 0-1: W8 A:e2m3", "W3g5 A6 token; steps 4: float",
    "W8 A8 static", "W8 A8 by-step", "W4 shaped", "A:nf4", "W:e3m2 A:e5m2; steps 2: W4A4",
    "conv: W4A8; steps 1-3 in: W2", "W2A2; steps 0: W3A3; steps 1: W4A4; steps 3: W8A8",
)  # fmt: skip


def test_recipes_in_one_structure_give_the_same_samples_in_one_compilation():
    qs = [quantized(recipe) for recipe in RECIPES]
    traced = []

    @jax.jit
    def sample(q):
        traced.append(None)
        return diffusion.sample(
            precision.quantized_call(q), X_T, STEPS, per_call=q.calls(STEPS)
        ).x_0

    same = [sample(q) for q in precision.alike(qs, STEPS)]
    assert len(traced) == 1
    for recipe, q, x_0 in zip(RECIPES, qs, same, strict=True):
        np.testing.assert_allclose(x_0, sample(q), rtol=1e-9, atol=1e-9, err_msg=recipe)


def test_recipes_that_differ_in_widths_alone_need_no_switch():
    qs = precision.alike([quantized("W4A8"), quantized("W6A4")], STEPS)
    assert all(not q.site_inputs["in"].needs_call for q in qs)


def test_nothing_and_other_calls_are_refused():
    with pytest.raises(ValueError, match="at least one quantized denoiser"):
        precision.alike([], STEPS)
    with pytest.raises(ValueError, match="a sampler of 3 calls, expected one of 5"):
        precision.alike([quantized("W8A8; steps 1: W4")], diffusion.ddim(diffusion.linear(200), 3))
