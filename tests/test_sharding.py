"""Samplers, analyses and sweeps on eight simulated devices, and on two processes of four.

A sweep is the same to the bit: a device runs the program of one configuration, whatever the others
do. Samples and ledgers are equal to float64 rounding: a device that holds one sample instead of
eight may add the products of a matrix row in another order. Sharded weights too, since sums run
over devices.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import sharding

COMMON = """
import json, sys

import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np
from qdiffjax import sharding

def gap(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)
"""
EIGHT = (
    COMMON
    + """
from qdiffjax import diffusion, hardware, precision
from qdiffjax.analysis.errors import ledger
from qdiffjax.denoiser import Denoiser
from tests import worlds
from tests.analysis import coupled

mesh = sharding.make_mesh()
x_T, steps = worlds.normal(0, 8, 2), worlds.DDPM
operands = coupled.weights()

def samples(bits, x):
    inputs = {
        s.name: precision.SiteQuant(
            coupled.round_weight(operands[s.name], bits[0]) if s.name in operands else None,
            (coupled.symmetric(4.0, bits[1]),) * len(s.activations),
        )
        for s in worlds.SITES
    }
    q = precision.Quantized(Denoiser(worlds.net_fn, worlds.PARAMS), inputs)
    call = precision.quantized_call(q)
    return diffusion.sample(call, x, steps, key=worlds.KEY).x_0

bits = jnp.asarray(np.random.default_rng(0).integers(2, 9, (11, 2)), jnp.float64)
one = jax.jit(sharding.sweep(samples))(bits, x_T)
eight = jax.jit(sharding.sweep(samples, mesh))(bits, x_T)
alone = jax.jit(samples)
singly = jnp.stack([alone(b, x_T) for b in bits])
swept = jax.jit(sharding.sweep(samples, mesh)).lower(bits[:8], x_T).compile()

q = coupled.quantized(6, 6)
analyse = jax.jit(lambda x: ledger.attribution(q, x, steps, num_nodes=1, key=worlds.KEY))
on_one, on_eight = analyse(x_T), analyse(sharding.split(x_T, mesh))

def plain(params, x):
    return diffusion.sample(
        diffusion.bind(worlds.net_fn, params), x, steps, key=worlds.KEY, keep_trajectory=False
    ).x_0

run = jax.jit(plain)

def place(num_batch, num_weights):
    table = sharding.make_mesh(num_batch, num_weights)
    params = sharding.shard_params(worlds.PARAMS, table, min_elements=1)
    return params, sharding.split(x_T, table)

placed = [place(8, 1), place(2, 4), place(1, 8)]
sharded = placed[-1][0]
total = sum(a.nbytes for a in jax.tree.leaves(sharded))
cost = hardware.compiled_cost(run, *placed[-1])
print(json.dumps({
    "devices": len(jax.devices()), "size": float(jnp.abs(one).max()),
    "spread": float(jnp.abs(one - one[:1]).max()),
    "one, eight": gap(one, eight), "one, singly": gap(one, singly),
    "swept over": len(swept.output_shardings.device_set),
    "ledger": gap(on_one, on_eight), "change": float(jnp.abs(on_one.change).max()),
    "analysed over": len(on_eight.xs_hat.sharding.device_set),
    "held by each": [sum(a.addressable_shards[i].data.nbytes for a in jax.tree.leaves(sharded))
                     for i in range(8)],
    "total": total, "arguments": cost.arguments,
    "sharded weights": [gap(run(worlds.PARAMS, x_T), run(*args)) for args in placed],
}))
"""
)
PROCESS = (
    COMMON
    + """
from qdiffjax import diffusion
port, me = sys.argv[1], int(sys.argv[2])
sharding.initialize(f"localhost:{port}", 2, me)
mesh = sharding.make_mesh()
x_T = np.random.default_rng(0).normal(size=(16, 3))
w = np.random.default_rng(1).normal(size=(8, 3, 3)) / 3
steps = diffusion.ddim(diffusion.linear(), 5)

def samples(x, w):
    call = diffusion.bind(lambda w, x, t: jnp.tanh(x @ w), w)
    return diffusion.sample(call, x, steps).x_0

everywhere = jax.jit(lambda x, w: (samples(x, w[0]), jnp.mean(x)))
split = sharding.from_local(x_T[8 * me : 8 * me + 8], mesh)
found = sharding.gather(everywhere(split, sharding.replicate(w, mesh)), mesh)
swept = jax.jit(sharding.sweep(lambda w, x: samples(x, w), mesh))(
    sharding.split(w, mesh), sharding.replicate(x_T, mesh)
)
swept = sharding.gather(swept, mesh)
here = jax.local_devices()[0]
alone = everywhere(*jax.device_put((x_T, w), here))
one_by_one = jax.jit(sharding.sweep(lambda w, x: samples(x, w)))(*jax.device_put((w, x_T), here))
print(json.dumps({
    "processes": jax.process_count(), "devices": mesh.size, "here": len(jax.local_devices()),
    "samples": gap(found, alone), "sweep": gap(swept, one_by_one),
}))
"""
)
EPS = np.finfo(np.float64).eps


def start(script, num_devices, *arguments):
    flags = (
        f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level=0"
    )
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=Path(__file__).parents[1],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def eight():
    return finish(start(EIGHT, 8))


@pytest.mark.slow
def test_a_sweep_of_recipes_over_eight_devices_is_that_of_one_to_the_bit(eight):
    assert (eight["devices"], eight["swept over"]) == (8, 8)
    assert eight["spread"] > 0.1  # the recipes differ; eleven of them, which eight do not divide
    assert eight["one, eight"] == 0


@pytest.mark.slow
def test_a_sweep_is_each_recipe_run_alone(eight):
    assert eight["one, singly"] <= 256 * EPS * eight["size"]


@pytest.mark.slow
def test_eight_devices_analyse_what_one_analyses(eight):
    assert eight["analysed over"] == 8
    assert eight["change"] > 1e-4
    assert eight["ledger"] <= 256 * EPS * eight["size"]  # states among what it returns


@pytest.mark.slow
def test_sharded_weights_give_the_same_samples(eight):
    tables = eight["sharded weights"]  # 8 x 1, 2 x 4 and 1 x 8 devices
    assert len(tables) == 3
    assert max(tables) <= 256 * EPS * eight["size"]


@pytest.mark.slow
def test_each_device_holds_its_share_of_the_weights(eight):
    # time [3, 8], in [2, 8], layers [2, 8, 8], query and key [8, 8] and out [8, 2]: all divide.
    assert eight["held by each"] == [eight["total"] // 8] * 8
    assert eight["arguments"] == eight["total"] // 8 + 8 * 8 * 2  # and all samples


@pytest.mark.slow
def test_two_processes_of_four_devices_do_what_one_does():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(PROCESS, 4, port, me) for me in range(2)]
    for found in map(finish, processes):
        assert (found["processes"], found["devices"], found["here"]) == (2, 8, 4)
        assert found["samples"] <= 256 * EPS
        assert found["sweep"] == 0


def test_parameters_are_split_along_their_longest_axis_that_the_devices_divide():
    mesh = jax.sharding.AbstractMesh((2, 4), (sharding.BATCH, sharding.WEIGHTS))
    shapes = {
        "kernel": (3, 3, 64, 128), "square": (256, 256), "odd": (513, 64), "prime": (31, 1031),
        "small": (4, 4), "scalar": (),
    }  # fmt: skip
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    found = sharding.param_shardings(params, mesh)  # type: ignore[arg-type]
    axes = {k: [i for i, a in enumerate(s.spec) if a] for k, s in found.items()}
    assert axes == {
        "kernel": [3], "square": [1], "odd": [1], "prime": [], "small": [], "scalar": [],
    }  # fmt: skip


def test_one_device_is_a_mesh_of_one():
    mesh = sharding.make_mesh(1)
    x = jnp.arange(6.0).reshape(3, 2)
    for placed in (sharding.split(x, mesh), sharding.replicate(x, mesh), sharding.gather(x, mesh),
                   sharding.from_local(np.asarray(x), mesh)):  # fmt: skip
        np.testing.assert_array_equal(placed, x)
    swept = [jax.jit(sharding.sweep(jnp.cumsum, m))(x) for m in (None, mesh)]
    np.testing.assert_array_equal(*swept)
    np.testing.assert_array_equal(swept[0], np.cumsum(x, axis=1))


def test_what_cannot_be_shared_out_is_refused():
    mesh = sharding.make_mesh(1)
    with pytest.raises(ValueError, match="expected 1"):
        sharding.make_mesh(1000)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        sharding.split(jnp.float64(1), mesh)
    with pytest.raises(ValueError, match="leading axes"):
        sharding.sweep(jnp.sum, mesh)((jnp.ones(3), jnp.ones(4)))


def test_a_cluster_needs_all_of_its_description():
    sharding.initialize(num_processes=1)  # no cluster
    with pytest.raises(ValueError, match="expected all three"):
        sharding.initialize("localhost:1", 2)
    with pytest.raises(ValueError, match=r"got 2, expected 0 \.\.\. 1"):
        sharding.initialize("localhost:1", 2, 2)
    jax.devices()
    with pytest.raises(RuntimeError, match="before any array"):
        sharding.initialize("localhost:1", 2, 1)
