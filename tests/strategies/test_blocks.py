"""Roundings learned from the prediction."""

import jax
import jax.numpy as jnp
import pytest

from qdiffjax import precision, strategies
from qdiffjax.strategies import blocks
from tests import worlds
from tests.precision.small import STEPS, calibrated, denoiser
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 8, 6, 6, 3)
KEY = jax.random.key(1)


@pytest.mark.parametrize(
    ("name", "block"),
    [("down_0/block_1/conv_2/kernel", "down_0/block_1"), ("block_3/attn/query/kernel",
     "block_3/attn"), ("conv_in/kernel", "conv_in"), ("w", "w")],
)  # fmt: skip
def test_blocks_are_the_networks_own_parts(name, block):
    assert blocks.block_of(name) == block


def error(q):
    fresh = worlds.normal(9, 16, 6, 6, 3)
    eps = precision.quantized_call(q)(fresh, jnp.asarray(120.0), None)[0]
    exact = denoiser().eps_fn(denoiser().params, fresh, jnp.asarray(120.0))
    return float(jnp.linalg.norm(eps - exact))


@pytest.mark.parametrize(
    "options", [{"unit": "network"}, {"unit": "block"}, {"unit": "network", "drop": 0.5}],
    ids=["network", "block", "drop"],
)  # fmt: skip
def test_what_is_learned_errs_less_on_other_samples(options):
    errors, sites = [], ("conv", "in", "out")
    cure = strategies.reconstruction(150, batch=8, learning_rate=0.02, **options)
    for cures in ([], [cure]):
        done = strategies.improve(calibrated(), "W3A6", cures, STEPS, KEY, x_T=NOISE, sites=sites)
        errors.append(error(done.quantized()))
    assert errors[1] < 0.9 * errors[0]
    num_units = 1 if options["unit"] == "network" else 3
    assert done.bill.optimizer_steps == 150 * num_units
    grids = done.weight_grids()
    for name, grid in grids.items():  # every weight is on its grid, up or down
        codes = done.rounded[name] / grid.scale
        assert_close(codes, jnp.round(codes), factor=64, scale=4.0)
        assert float(jnp.max(jnp.abs(done.rounded[name] - grid.w) / grid.scale)) < 1 + 1e-3


def test_no_step_is_ever_worse_than_the_default_on_its_states():
    cure = strategies.reconstruction(1, unit="network", learning_rate=10.0)
    done = strategies.improve(calibrated(), "W3A16", [cure], STEPS, KEY, x_T=NOISE, sites=("in",))
    before = strategies.improve(calibrated(), "W3A16", [], STEPS, KEY, x_T=NOISE, sites=("in",))
    seen = done.states

    def of(q):
        call = precision.quantized_call(q)
        errors = [call(x, t, None)[0] - denoiser().eps_fn(denoiser().params, x, t)
                  for x, t in zip(seen.x, seen.t, strict=True)]  # fmt: skip
        return float(jnp.linalg.norm(jnp.stack(errors)))

    assert of(done.quantized()) <= of(before.quantized()) * (1 + 1e-6)
