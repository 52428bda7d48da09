"""Time per network call: in the sampler's scan, alone, and beside the same UNet in torch.

    python -m experiments.bench.networks

Everything runs in turns of as many calls as the sampler has steps, after compilation, so that
ratios hold when the machine's speed drifts; CPU time holds even on a busy machine. torch and
diffusers are optional; what is not installed is said to be missing. All use every core, or the GPU
that JAX sees; torch channels-last.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import peers
from experiments.harness import command, subject, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import diffusion
from qdiffjax._checks import require
from qdiffjax.networks import denoisers
from qdiffjax.sites import list_sites


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    checkpoint: str = subject.checkpoint()
    batch: int = option(64, "Number of samples of a call.", least=1)
    num_steps: int = option(20, "Number of calls of a turn.", least=1)
    num_rounds: int = option(10, "Number of turns of each.", least=1)
    torch_compile: bool = option(False, "Run torch.compile too, which takes a minute or two.")


OURS, SCAN, PEER = "ours, one call", "ours, sampler's scan", "diffusers UNet2DModel"
Contender = tuple[Callable[[], Any], float]  # a turn, and its MACs a sample and call


def ours(denoiser, x, num_steps: int) -> dict[str, Contender]:
    """Return the scan, and its calls one after another; each turn is `num_steps` calls."""
    eps_fn, params = denoiser.eps_fn, denoiser.params
    steps = diffusion.ddim(denoiser.schedule, num_steps)
    times = [jnp.float32(t) for t in np.asarray(steps.t)]
    macs = count_macs(denoiser, x)
    call = jax.jit(eps_fn)

    def one_by_one():
        h = x
        for t in times:  # each waits for the one before, as in a sampler
            h = call(params, h, t)
        return jax.block_until_ready(h)

    scan = jax.jit(timing.scan(functools.partial(diffusion.bind, eps_fn), steps))
    return {OURS: (one_by_one, macs), SCAN: (lambda: timing.finish(scan, params, x), macs)}


def count_macs(denoiser, x) -> float:
    """Return the multiply-adds of our network for one sample and call."""
    sites = list_sites(denoiser.eps_fn, denoiser.params, x[:1], jnp.float32(0))
    return float(sum(site.macs or 0 for site in sites))


def twins(denoiser, x, num_steps: int, compiled: bool) -> dict[str, Contender]:
    """Return the same network on the same parameters in torch.

    Raises:
      ImportError: torch is not installed.
      ValueError: its output is not ours.
    """
    import torch

    fn, x_there, t = peers.twin(denoiser, x)
    with torch.no_grad():
        there = fn(x_there, t).cpu().numpy().transpose(0, 2, 3, 1)
    here = np.asarray(jax.jit(denoiser.eps_fn)(denoiser.params, x, jnp.float32(500)))
    if not np.abs(there - here).max() < 1e-4 * np.abs(here).max():
        raise ValueError("the network in torch is not the same function; see torch_twin.py.")
    fns = {"torch, eager": fn} | ({"torch, compiled": torch.compile(fn)} if compiled else {})
    macs = count_macs(denoiser, x)
    return {k: (peers.torch_turn(fn, x_there, t, num_steps), macs) for k, fn in fns.items()}


def run(config: Config, *, progress: bool = False):
    """Return the times of a call, and a row for each contender, those that are missing last.

    Arrays: `seconds` and `cpu_seconds` [num_rounds, contenders].

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: it is not an unconditional UNet.
    """
    denoiser = denoisers.load(config.checkpoint)
    require(peers.has_twin(denoiser), got=config.checkpoint,
            expected="an unconditional UNet, the kind of the twin",
            remedy="choose another checkpoint")  # fmt: skip
    x, num_steps = subject.noise(denoiser, config.batch, 0), config.num_steps
    makers = {
        "torch": lambda: twins(denoiser, x, num_steps, config.torch_compile),
        "diffusers": lambda: {PEER: peers.diffusers(denoiser, x, num_steps)},
    }
    made, missing = timing.available(makers)
    contenders = ours(denoiser, x, num_steps)
    for group in made.values():
        contenders |= group
    turns = {name: turn for name, (turn, _) in contenders.items()}
    wall, cpu, each = timing.compare(turns, config.num_rounds, num_calls=num_steps)
    rows = [
        {"name": t.name, "milliseconds": t.milliseconds, "min_milliseconds": 1e3 * t.wall.min(),
         "cpu_milliseconds": 1e3 * t.cpu.min(), "over_ours": t.ratio, "macs": macs,
         "gmacs_per_second": config.batch * macs / np.median(t.wall) / 1e9}
        for t, (_, macs) in zip(each, contenders.values(), strict=True)
    ]  # fmt: skip
    rows += [{"name": name, "missing": reason} for name, reason in missing.items()]
    return {"seconds": wall, "cpu_seconds": cpu}, rows


COLUMNS = (
    ("", lambda r: r["name"]), ("ms\na call", tables.numbers("milliseconds")),
    ("ms\nat best", tables.numbers("min_milliseconds")),
    ("CPU ms\nat best", tables.numbers("cpu_milliseconds")),
    ("x ours", tables.numbers("over_ours")), ("GMAC/s", tables.numbers("gmacs_per_second")),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=lambda rows: [tables.columns(rows, COLUMNS), *tables.reasons(rows, "missing", "name")],
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
