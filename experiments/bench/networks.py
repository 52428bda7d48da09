"""Time per network call: in the sampler's scan, alone, and beside the same UNet in torch.

    python -m experiments.bench.networks

Everything runs in turns of as many calls as the sampler has steps, after compilation, so that
ratios hold when the machine's speed drifts; CPU time holds even on a busy machine. torch and
diffusers are optional; what is not installed is said to be missing. All use every core, or the GPU
that JAX sees; torch channels-last.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import torch_twin
from experiments.harness import old_command as command
from experiments.harness import subject, timing
from qdiffjax import diffusion
from qdiffjax.networks import denoisers
from qdiffjax.sites import list_sites


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    batch: int = 64
    num_steps: int = 20
    num_rounds: int = 10
    torch_compile: bool = False


HELP = {
    "checkpoint": "folder or shipped name",
    "batch": "samples of a call",
    "num_steps": "calls of a turn",
    "num_rounds": "turns of each",
    "torch_compile": "torch.compile too: a minute or two",
}
OURS, SCAN = "ours, one call", "ours, sampler's scan"
Contender = tuple[Callable[[], Any], float]  # a turn, and its MACs a sample and call


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if min(config.batch, config.num_steps, config.num_rounds) < 1:
        raise ValueError("batch, steps and rounds must be at least 1.")


def count_macs(denoiser, x) -> float:
    """Multiply-adds a sample and call of our network."""
    sites = list_sites(denoiser.eps_fn, denoiser.params, x[:1], jnp.float32(0))
    return float(sum(site.macs or 0 for site in sites))


def ours(denoiser, x, num_steps: int) -> dict[str, Contender]:
    """The scan, and its calls one after another; each turn is `num_steps` calls."""
    eps_fn, params = denoiser.eps_fn, denoiser.params
    steps = diffusion.ddim(denoiser.schedule, num_steps)
    times = [jnp.float32(t) for t in np.asarray(steps.t)]

    def scan(params, x):
        call = diffusion.bind(eps_fn, params)
        return diffusion.sample(call, x, steps, keep_trajectory=False).x_0

    def one_by_one():
        h = x
        for t in times:  # each waits for the one before, as in a sampler
            h = call(params, h, t)
        return jax.block_until_ready(h)

    call, scan = jax.jit(eps_fn), jax.jit(scan)
    macs = count_macs(denoiser, x)
    return {
        OURS: (one_by_one, macs),
        SCAN: (lambda: jax.block_until_ready(scan(params, x)), macs),
    }


def device() -> str:
    """Where torch runs: on the kind of device that JAX uses."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def twins(denoiser, x, num_steps: int, compiled: bool) -> dict[str, Contender]:
    """The same network on the same parameters in torch.

    Raises:
      ImportError: torch is not installed.
      ValueError: its output is not ours.
    """
    import torch

    x_there = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy()).to(device())
    t = torch.tensor([500.0], device=device())
    fn = torch_twin.unet(denoiser.params, device=device(), **denoiser.config.arguments)
    with torch.no_grad():
        there = fn(x_there, t).cpu().numpy().transpose(0, 2, 3, 1)
    here = np.asarray(jax.jit(denoiser.eps_fn)(denoiser.params, x, jnp.float32(500)))
    if not np.abs(there - here).max() < 1e-4 * np.abs(here).max():
        raise ValueError("the network in torch is not the same function; see torch_twin.py.")
    fns = {"torch, eager": fn} | ({"torch, compiled": torch.compile(fn)} if compiled else {})
    macs = count_macs(denoiser, x)
    return {name: (torch_turn(fn, x_there, t, num_steps), macs) for name, fn in fns.items()}


def torch_turn(fn, x, t, num_steps: int) -> Callable[[], Any]:
    """`num_steps` calls of a torch function without gradients."""
    import torch

    def turn():
        with torch.no_grad():
            for _ in range(num_steps):
                fn(x, t)
            if device() == "cuda":
                torch.cuda.synchronize()

    return turn


def torch_macs(fn, x, t) -> float:
    """Multiply-adds a sample, as torch counts them: without attention's products on a CPU."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fn(x, t)
    return counter.get_total_flops() / 2 / x.shape[0]


def peer(denoiser, x, num_steps: int) -> dict[str, Contender]:
    """A diffusers UNet with the same widths on images folded alike; not the same network.

    Raises:
      ImportError: diffusers is not installed.
    """
    import diffusers
    import torch

    a = denoiser.config.arguments
    side, channels = x.shape[1] // a["patch"], x.shape[3] * a["patch"] ** 2
    net = diffusers.UNet2DModel(
        sample_size=side, in_channels=channels, out_channels=channels,
        block_out_channels=a["channels"], layers_per_block=a["num_blocks"],
        down_block_types=tuple("AttnDownBlock2D" if b else "DownBlock2D" for b in a["attention"]),
        up_block_types=tuple("AttnUpBlock2D" if b else "UpBlock2D" for b in a["attention"][::-1]),
        norm_num_groups=8, attention_head_dim=a["channels"][-1] // 4,
    ).eval().to(device(), memory_format=torch.channels_last)  # fmt: skip
    z = torch.randn(x.shape[0], channels, side, side, device=device())
    z = z.contiguous(memory_format=torch.channels_last)
    return {"diffusers UNet2DModel": (torch_turn(net, z, 500, num_steps), torch_macs(net, z, 500))}


def run(config: Config, *, progress: bool = False):
    """Return the times of a call, and a row for each contender, those that are missing last.

    Arrays: `seconds` and `cpu_seconds` [num_rounds, found].

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: it is not an unconditional UNet.
    """
    denoiser = denoisers.load(denoisers.find_checkpoint(config.checkpoint))
    if denoiser.config.network != "unet" or denoiser.config.num_classes:
        raise ValueError(
            f"got {config.checkpoint}, expected an unconditional UNet, the twin's kind."
        )
    x, num_steps = subject.noise(denoiser, config.batch, 0), config.num_steps
    turns, missing = ours(denoiser, x, num_steps), []
    for name, make in (
        ("torch", lambda: twins(denoiser, x, num_steps, config.torch_compile)),
        ("diffusers", lambda: peer(denoiser, x, num_steps)),
    ):
        try:
            turns |= make()
        except ImportError as error:
            missing.append({"name": name, "missing": str(error)})
    fns = {name: turn for name, (turn, _) in turns.items()}
    wall, cpu = timing.interleave(fns, config.num_rounds)
    seconds, cpu_seconds = wall / num_steps, cpu / num_steps
    base = seconds[:, list(turns).index(OURS)]
    rows = [
        {"name": name, "milliseconds": 1e3 * float(np.median(column)),
         "min_milliseconds": 1e3 * float(column.min()),
         "cpu_milliseconds": 1e3 * float(on_cpu.min()),
         "over_ours": float(np.median(column / base)), "macs": macs,
         "gmacs_per_second": config.batch * macs / float(np.median(column)) / 1e9}
        for (name, (_, macs)), column, on_cpu in zip(
            turns.items(), seconds.T, cpu_seconds.T, strict=True
        )
    ]  # fmt: skip
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}, rows + missing


def show(row) -> str:
    """One line of the table."""
    if "missing" in row:
        return f"{row['name']:24s} not measured: {row['missing']}"
    return (
        f"{row['name']:24s} {row['milliseconds']:8.2f} ms a call"
        f" (best {row['min_milliseconds']:.2f}, CPU {row['cpu_milliseconds']:.2f})"
        f"  {row['over_ours']:5.2f} x ours  {row['gmacs_per_second']:6.1f} GMAC/s"
    )


def print_rows(rows) -> None:
    """Print a line a contender."""
    print("\n".join(show(row) for row in rows))


EXPERIMENT = command.Experiment(
    "bench_networks", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
