"""Many devices: what a sweep gains from them, and what a large network asks of each.

    python -m experiments.bench.scaling

A sweep of recipes over 1, 2, 4, 8 simulated devices of this machine's CPU, each of which computes
on one thread: it can gain no more than there are cores, and is told to be the same to the bit.
Then the memory of samplers of DiT-XL/2, compiled for CPU and not run: against the number of steps,
with 256 and 1024 tokens, and on tables of eight devices (those that share samples out by those that
share weights out).
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, networks, subject, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import diffusion, hardware, precision, sharding
from qdiffjax._checks import require

# What runs in a process of its own, with the devices; its argument and its output are JSON.
CHILD = "import sys; from experiments.bench import scaling; print(scaling.measured(sys.argv[1]))"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    checkpoint: str = option(
        "fashion_unet", "Network of the sweep: folder of a checkpoint, or name of a shipped one.",
        each=subject.check_checkpoint,
    )  # fmt: skip
    num_recipes: int = option(
        16, "Number of recipes of the sweep, a multiple of the numbers of devices.", least=1
    )
    num_samples: int = option(4, "Number of samples of each recipe.", least=1)
    num_steps: int = option(4, "Steps of its sampler.", least=1)
    num_rounds: int = option(20, "Number of sweeps that are timed.", least=1)
    devices: tuple[int, ...] = option(
        (1, 2, 4, 8), "Numbers of simulated devices, the first to compare with.", least=1
    )
    network: str = option(
        "dit_xl_2", "A DiT whose memory is read, by its shapes.", choices=networks.SIZES
    )
    sides: tuple[int, ...] = option((32, 64), "Sides of its latents; a token is 2 x 2.", least=1)
    steps: tuple[int, ...] = option((10, 50, 250), "Steps of its samplers.", least=1, most=1000)

    def check(self) -> None:
        """Refuse recipes that the devices do not divide."""
        require(not any(self.num_recipes % n for n in self.devices), "devices", got=self.devices,
                expected=f"numbers that divide the recipes, {self.num_recipes}",
                remedy="choose divisors, or another --num-recipes")  # fmt: skip


def run(config: Config, *, progress: bool = False):
    """Return arrays and rows, from a process with as many devices as asked for.

    Raises:
      ValueError: it failed; says why.
    """
    flags = (f"--xla_force_host_platform_device_count={max(config.devices)} "
             "--xla_cpu_multi_thread_eigen=false")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(dataclasses.asdict(config))],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"the process with the devices failed: {done.stderr.strip()[-500:]}")
    seconds, rows = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": np.array(seconds)}, rows


def measured(config: str) -> str:
    """Return seconds [num_rounds, devices] of the sweep, and all rows, as JSON."""
    parsed = Config(**json.loads(config))
    seconds, rows = sweep(parsed)
    return json.dumps([seconds.tolist(), rows + memory(parsed)])


def samples(bits, shared, *, steps):
    """Sample under the recipe with these widths [2] of weights and activations, traced."""
    calibration, x_T = shared
    recipe = precision.Recipe({
        s.name: precision.SiteBits(None if s.weight is None else bits[0], bits[1])
        for s in calibration.sites
    })  # fmt: skip
    call = precision.quantized_call(precision.quantize(calibration, recipe))
    return diffusion.sample(call, x_T, steps, keep_trajectory=False).x_0


def sweep(config: Config) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Time one sweep of recipes on 1, 2, 4 ... devices, in turns; a row for each number."""
    make_steps = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    study = subject.prepare(config.checkpoint, make_steps, ("*",), 0)
    fn = functools.partial(samples, steps=make_steps(study.denoiser.schedule))
    x_T = subject.noise(study.denoiser, config.num_samples, 0)
    shared = study.calibration, x_T
    bits = np.random.default_rng(0).integers(4, 9, (config.num_recipes, 2)).astype(np.int32)
    turns = {}
    for num in config.devices:
        mesh = sharding.make_mesh(num)
        args = sharding.split(bits, mesh), sharding.replicate(shared, mesh)
        sweep_fn = jax.jit(sharding.sweep(fn, mesh)).lower(*args).compile()
        turns[str(num)] = functools.partial(timing.finish, sweep_fn, *args)
    results = [np.asarray(turn()) for turn in turns.values()]
    seconds, _, each = timing.compare(turns, config.num_rounds)
    rows = [
        {"part": "sweep", "kind": "measured", "devices": num, "best": float(t.wall.min()),
         "median": float(np.median(t.wall)), "speedup": float(t.base.min() / t.wall.min()),
         "speedup_median": float(np.median(t.base / t.wall)),
         "same_bits": bool(np.array_equal(result, results[0]))}
        for num, t, result in zip(config.devices, each, results, strict=True)
    ]  # fmt: skip
    return seconds, rows


def memory(config: Config) -> list[dict[str, Any]]:
    """Return the memory of samplers of a large network: by steps, tokens, and devices."""
    memory_row = functools.partial(_memory_row, networks.load(config.network))
    most, few, alone = max(config.devices), min(config.steps), (1, 1)
    cases = [(side, n, 1, alone) for side in config.sides for n in config.steps]
    shapes = dict.fromkeys([alone, *((most // k, k) for k in (1, 4, most) if most % k == 0)])
    cases += [(side, few, most, shape) for side in config.sides for shape in shapes]
    rows = [memory_row(*case) for case in cases]
    return [*rows, memory_row(config.sides[0], max(config.steps), 1, alone, True)]


def _memory_row(network, side: int, num_steps: int, batch: int, shape, keep: bool = False):
    """Compile the sampler and read what one of a table of devices holds; nothing is run."""
    mesh = sharding.make_mesh(*shape)
    x = jax.ShapeDtypeStruct((batch, side, side, network.shape[-1]), jnp.float32)
    params, x = jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        (network.params, x),
        (sharding.param_shardings(network.params, mesh), sharding.over_batch(mesh)),
    )
    steps = diffusion.ddim(diffusion.linear(), num_steps)

    def run(params, x, steps):
        call = diffusion.bind(network.eps_fn, params)
        trajectory = diffusion.sample(call, x, steps, keep_trajectory=keep)
        return trajectory.xs if keep else trajectory.x_0

    cost = hardware.compiled_cost(jax.jit(run), params, x, steps)
    return {
        "part": "memory", "kind": str(cost.kind), "side": side, "steps": num_steps,
        "batch": batch, "devices": list(shape), "keeps_trajectory": keep,
        "arguments": cost.arguments, "outputs": cost.outputs, "temporaries": cost.temporaries,
        "peak": cost.peak,
    }  # fmt: skip


SWEEPS = (
    ("devices", lambda r: r["devices"]), ("ms\nat best", tables.numbers("best", unit=1e-3)),
    ("x as fast", tables.numbers("speedup")), ("by rounds", tables.numbers("speedup_median")),
    ("bits", lambda r: "the same" if r["same_bits"] else "OTHER BITS"),
)  # fmt: skip
MEMORY = (
    ("devices", lambda r: " x ".join(map(str, r["devices"]))),
    ("latents", lambda r: f"{r['side']} x {r['side']}"), ("batch", lambda r: r["batch"]),
    ("steps", lambda r: r["steps"]),
    ("states", lambda r: "all" if r["keeps_trajectory"] else "last"),
    ("MB of\narguments", tables.numbers("arguments", 4, 1e6)),
    ("temporary", tables.numbers("temporaries", 4, 1e6)),
    ("results", tables.numbers("outputs", 4, 1e6)), ("in all", tables.numbers("peak", 4, 1e6)),
)  # fmt: skip


def table(rows) -> list:
    """Return the tables on the screen: sweeps, and the memory of one device."""
    parts = {"sweep": SWEEPS, "memory": MEMORY}
    return [tables.columns([r for r in rows if r["part"] == part], spec, title=part)
            for part, spec in parts.items()]  # fmt: skip


EXPERIMENT = command.experiment(
    Config, run, table=table, notes={"devices": "simulated, one thread each"}
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
