"""What `experiments.bench.scaling` runs in a process of its own, with eight simulated devices.

    XLA_FLAGS=... python -m experiments.bench.scaling_parts CONFIG

CONFIG is JSON; rows and arrays go to the standard output as JSON.
"""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import networks, subject, timing
from qdiffjax import diffusion, hardware, precision, quant, sharding
from qdiffjax.precision import calibration


def samples(bits, shared, *, study: subject.Subject, steps):
    """Final samples of the recipe with these widths [2] of weights and activations, traced."""
    params, weights, ranges, x_T = shared
    format, activations = quant.IntFormat(bits[0]), quant.IntFormat(bits[1], signed=False)
    shapes = {s.name: precision.output_channels(s) for s in study.sites if s.weight is not None}
    rounded = {
        name: quant.fake_quant(w, *quant.absmax(w, format=format, scale_shape=shapes[name]),
                               format=format)
        for name, w in weights.items()
    }  # fmt: skip
    inputs = {
        name: precision.SiteQuant(
            rounded.get(name),
            tuple(quant.activation_grid(low, high, activations) for low, high in operands),
        )
        for name, operands in ranges.items()
    }
    call = precision.quantized_call(precision.Quantized(study.denoiser.eps_fn, params, inputs))
    return diffusion.sample(call, x_T, steps, keep_trajectory=False).x_0


def sweep(config: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time one sweep of recipes on 1, 2, 4 ... devices, in turns; a row for each number."""
    c = config
    make_steps = functools.partial(diffusion.ddim, num_steps=c["num_steps"])
    study = subject.prepare(c["checkpoint"], make_steps, ("*",), 0)
    fn = functools.partial(samples, study=study, steps=make_steps(study.denoiser.schedule))
    x_T = subject.noise(study.denoiser, c["num_samples"], 0)
    shared = study.denoiser.params, study.weights, calibration.over_steps(study.ranges), x_T
    bits = np.random.default_rng(0).integers(4, 9, (c["num_recipes"], 2)).astype(np.int32)
    turns, found = {}, {}
    for num in c["devices"]:
        mesh = sharding.make_mesh(num)
        args = sharding.split(bits, mesh), sharding.replicate(shared, mesh)
        run = jax.jit(sharding.sweep(fn, mesh)).lower(*args).compile()
        turns[str(num)] = functools.partial(_finish, run, args)
        found[num] = np.asarray(run(*args))
    wall, _ = timing.interleave(turns, c["num_rounds"])
    first = c["devices"][0]
    rows = [
        {"part": "sweep", "kind": "measured", "devices": num, "best": float(wall[:, i].min()),
         "median": float(np.median(wall[:, i])),
         "speedup": float(wall[:, 0].min() / wall[:, i].min()),
         "speedup_median": float(np.median(wall[:, 0] / wall[:, i])),
         "same_bits": bool(np.array_equal(found[num], found[first]))}
        for i, num in enumerate(c["devices"])
    ]  # fmt: skip
    return rows, {"seconds": wall.tolist()}


def _finish(run, args) -> None:
    jax.block_until_ready(run(*args))


def memory(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory of samplers of a large network, as compiled: by steps, tokens, and devices."""
    network = networks.load(config["network"])
    most, few = max(config["devices"]), min(config["steps"])
    alone = (1, 1)
    cases = [(side, n, 1, alone) for side in config["sides"] for n in config["steps"]]
    tables = dict.fromkeys([alone, *((most // k, k) for k in (1, 4, most) if most % k == 0)])
    cases += [(side, few, most, table) for side in config["sides"] for table in tables]
    rows = [_memory_row(network, *case) for case in cases]
    return [*rows, _memory_row(network, config["sides"][0], max(config["steps"]), 1, alone, True)]


def _memory_row(network, side: int, num_steps: int, batch: int, table, keep: bool = False):
    """Compile the sampler and read what one device of the table holds; nothing is run."""
    mesh = sharding.make_mesh(*table)
    places = sharding.param_shardings(network.params, mesh)
    params = jax.tree.map(_placed, network.params, places)
    x = jax.ShapeDtypeStruct((batch, side, side, network.shape[-1]), jnp.float32)
    steps = diffusion.ddim(diffusion.linear(), num_steps)

    def run(params, x, steps):
        call = diffusion.bind(network.eps_fn, params)
        found = diffusion.sample(call, x, steps, keep_trajectory=keep)
        return found.xs if keep else found.x_0

    x = _placed(x, sharding.over_batch(mesh))
    cost = hardware.compiled_cost(jax.jit(run), params, x, steps)
    return {
        "part": "memory", "kind": str(cost.kind), "side": side, "steps": num_steps,
        "batch": batch, "devices": list(table), "keeps_trajectory": keep,
        "arguments": cost.arguments, "outputs": cost.outputs, "temporaries": cost.temporaries,
        "peak": cost.peak,
    }  # fmt: skip


def _placed(shape, place):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    swept, times = sweep(given)
    print(json.dumps({"rows": swept + memory(given), "arrays": times}))
