"""The benchmark of samplers: its yardstick is the simulation, its bytes are those of a device."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import peers, sampler
from experiments.harness import command
from qdiffjax import _tables as tables
from qdiffjax import precision
from qdiffjax.sites import list_sites, transform
from tests import worlds
from tests.precision.lowering import calibrated
from tests.tolerances import assert_close


@pytest.mark.parametrize("name", ["nnx_net", "handwritten"])
def test_sums_in_another_order_are_the_same_sums(name):
    net = worlds.NETWORKS[name]()
    sites = list_sites(net.fn, *net.args)
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=None)
    inputs = precision.quantize(calibrated(net), recipe).site_inputs
    runs = [
        jax.jit(transform(net.fn, rule))(*net.args, site_inputs=inputs)[0]
        for rule in (precision.quantize_site, sampler.reordered(1))
    ]
    assert_close(runs[1], runs[0])
    assert np.any(runs[0] != runs[1])  # another order


def test_two_int4_take_a_byte():
    tree = {"codes": jnp.zeros((3, 4), jnp.int4), "scale": jnp.zeros(4, jnp.float32)}
    assert peers.num_bytes(tree) == 6 + 16


def test_what_is_missing_is_said():
    row = {"checkpoint": "a", "name": "torch float32", "missing": "No module named 'torch'"}
    tables.show(sampler.EXPERIMENT.table([row]), text := io.StringIO())
    assert "a, torch float32: No module named 'torch'" in text.getvalue()


def test_nothing_is_measured_without_rounds():
    with pytest.raises(ValueError, match="at least 1"):
        command.check(sampler.Config(num_rounds=0))


def test_one_order_is_no_yardstick():
    with pytest.raises(ValueError, match="at least 2"):
        command.check(sampler.Config(num_orders=1))


def test_distances_are_medians_over_orders_and_pairs_of_orders():
    orders = [jnp.full((2, 3), v, jnp.float32) for v in (0.0, 1.0, 4.0)]
    distances = sampler.compared(jnp.full((2, 3), 2.0, jnp.float32), orders)
    assert distances == {"from_simulation": 2.0, "two_orders": 3.0, "two_orders_range": (1.0, 4.0)}
