"""Eight devices do what one does, in training and in sampling: a process of its own simulates them.

The samples are equal to float32 rounding, not to the bit: a device that holds one image instead of
eight may add the products of a matrix row in another order.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json

import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qdiffjax import diffusion
from qdiffjax import training
from qdiffjax.networks import configs, denoisers

config = configs.ModelConfig(
    (4, 4, 1), "dit", {"patch": 2, "width": 8, "depth": 1, "num_heads": 2}, num_classes=2,
)
leaves, tree = jax.tree.flatten(configs.init_params(config, jax.random.key(0)))
rng = np.random.default_rng(0)
params = jax.tree.unflatten(tree, [
    leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves
])
mesh = Mesh(np.array(jax.devices()), ("batch",))

steps = diffusion.ddpm(diffusion.linear(), 3)
eps_fn = denoisers.make_denoiser(config, params).eps_fn
x_T = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
label = jnp.arange(8) % 3

@jax.jit
def run(params, x, label, key):
    call = diffusion.bind(lambda p, x, t: eps_fn(p, x, t, label), params)
    return diffusion.sample(call, x, steps, key=key).x_0

one = run(params, x_T, label, jax.random.key(2))
split = NamedSharding(mesh, PartitionSpec("batch"))
everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
eight = run(everywhere, *jax.device_put((x_T, label), split), jax.random.key(2))

def loss_fn(params, key, batch):
    x, y = batch
    noise = jax.random.normal(key, y.shape, y.dtype)
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y - noise) ** 2)

examples = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(20, 3)).astype(np.float32)
start = {"w": 0.1 * jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), "b": jnp.zeros(3)}
settings = training.TrainConfig(
    num_steps=5, batch_size=16, learning_rate=0.1, warmup_steps=1, log_every=1
)
states = [
    training.fit(loss_fn, start, examples, settings, mesh=m, progress=False) for m in (None, mesh)
]

def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)

print(json.dumps({
    "devices": len(jax.devices()), "shards": len(eight.sharding.device_set),
    "image_a_device": eight.addressable_shards[0].data.shape[0],
    "magnitude": float(jnp.abs(one).max()), "samples": difference(one, eight),
    "losses": difference(states[0].losses, states[1].losses),
    "params": difference(states[0].params, states[1].params),
    "ema": difference(states[0].ema, states[1].ema),
    "moved": difference(states[0].params, start),
}))
"""


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[1], env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_eight_devices_sample_what_one_samples(found):
    assert (found["devices"], found["shards"], found["image_a_device"]) == (8, 8, 1)
    assert found["magnitude"] > 0.1
    assert found["samples"] <= 256 * np.finfo(np.float32).eps * found["magnitude"]


@pytest.mark.slow
def test_eight_devices_train_what_one_trains(found):
    assert found["moved"] > 0.05
    for name in ("losses", "params", "ema"):
        assert found[name] <= 256 * np.finfo(np.float32).eps
