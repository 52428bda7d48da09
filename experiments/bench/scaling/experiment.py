"""Many devices: what a sweep gains from them, and what a large network asks of each.

    python -m experiments.bench.scaling

A sweep of recipes over 1, 2, 4, 8 simulated devices of this machine's CPU, each of which computes
on one thread: it can gain no more than there are cores, and is told to be the same to the bit.
Then the memory of samplers of DiT-XL/2, compiled for CPU and not run: against the number of steps,
with 256 and 1024 tokens, and on tables of eight devices (those that share samples out by those that
share weights out).
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.harness import old_command as command
from experiments.harness import tables


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    num_recipes: int = 16
    num_samples: int = 4
    num_steps: int = 4
    num_rounds: int = 20
    devices: tuple[int, ...] = (1, 2, 4, 8)
    network: str = "dit_xl_2"
    sides: tuple[int, ...] = (32, 64)
    steps: tuple[int, ...] = (10, 50, 250)


HELP = {
    "checkpoint": "network of the sweep",
    "num_recipes": "of the sweep; the devices divide it",
    "num_samples": "of each recipe",
    "num_steps": "of its sampler",
    "num_rounds": "sweeps that are timed",
    "devices": "numbers of simulated devices, the first to compare with",
    "network": "a DiT whose memory is read, by its shapes",
    "sides": "of its latents; a token is 2 x 2",
    "steps": "of its samplers",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    uneven = [n for n in config.devices if n < 1 or config.num_recipes % n]
    if uneven or min(config.num_samples, config.num_steps, config.num_rounds, *config.steps) < 1:
        raise ValueError(f"expected numbers of devices that divide the recipes, and at least one "
                         f"sample, step and round, got {config}.")  # fmt: skip


def run(config: Config, *, progress: bool = False):
    """Return arrays and rows, from a process with as many devices as asked for.

    Raises:
      ValueError: it failed; says why.
    """
    check(config)
    flags = (f"--xla_force_host_platform_device_count={max(config.devices)} "
             "--xla_cpu_multi_thread_eigen=false")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.scaling.measure",
         json.dumps(dataclasses.asdict(config))],
        cwd=Path(__file__).parents[3], capture_output=True, text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"the process with the devices failed: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: np.array(value) for name, value in found["arrays"].items()}, found["rows"]


def show(row) -> str:
    """One line of the table."""
    number = tables.number
    if row["part"] == "sweep":
        same = "the same bits" if row["same_bits"] else "OTHER BITS"
        return (f"sweep on {row['devices']} devices: {1e3 * row['best']:.0f} ms at best, "
                f"{row['speedup']:.2f} x as fast ({row['speedup_median']:.2f} by rounds), "
                f"{same}")  # fmt: skip
    kept = ", all states kept" if row["keeps_trajectory"] else ""
    table = " x ".join(map(str, row["devices"]))
    held = [number(row[k] / 1e6, 4) for k in ("arguments", "temporaries", "outputs", "peak")]
    return (f"{row['side']}x{row['side']} latents, batch {row['batch']}, {row['steps']} steps"
            f"{kept}, {table} devices: MB a device: {held[0]} arguments, {held[1]} temporary, "
            f"{held[2]} results, {held[3]} in all")  # fmt: skip


def print_rows(rows) -> None:
    """Print a line a row."""
    print("\n".join(show(row) for row in rows))


EXPERIMENT = command.Experiment(
    "bench_scaling", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False,
    notes={"devices": "simulated, one thread each"},
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)
