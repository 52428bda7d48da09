"""Whole sampling runs of `experiments.bench.tpu_aot`, by shapes alone: a network inside a scan."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.tpu_aot import costs
from experiments.harness import networks, timing
from qdiffjax import diffusion, kernels, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.hardware.ahead import tpu
from qdiffjax.kernels.tpu.grid import TABLE
from qdiffjax.networks.models.dit import DiT
from qdiffjax.networks.models.unet import UNet
from qdiffjax.quant import ActivationGrid, IntFormat, QTensor
from qdiffjax.sites import Site, list_sites

S: Any = jax.ShapeDtypeStruct
BF16, F32, INT8 = jnp.bfloat16, jnp.float32, IntFormat(8)
WAYS = ("bf16", "kernels", "xla")


class Network(NamedTuple):
    """A denoiser and the latents that it takes; arrays are shapes."""

    denoiser: precision.Quantized
    x: Any


def unet(channels: tuple[int, ...], side: int, batch: int) -> Network:
    """Make a UNet in bfloat16 on latents [batch, side, side, 4], attention at the lowest level."""
    attention = (*[False] * (len(channels) - 1), True)
    net = UNet(channels=channels, num_blocks=1, attention=attention, patch=1, dtype=BF16)
    return network(net, side, batch)


def dit(width: int, depth: int, side: int, batch: int) -> Network:
    """Make a DiT in bfloat16 on latents [batch, side, side, 4] of (side / 2)^2 tokens."""
    net = DiT(patch=2, width=width, depth=depth, num_heads=width // 64, dtype=BF16)
    return network(net, side, batch)


def network(net, side: int, batch: int) -> Network:
    """Lower a linen network to W8A8 with static scales: all weights but the first and the last.

    Products with fewer than 32 inputs or outputs stay too.
    """
    params, x, t = networks.by_shapes(net, (side, side, 4), BF16).arguments(batch)
    weighted = [s for s in list_sites(net.apply, params, x, t) if s.weight is not None]
    wide = [s for s in weighted[1:-1] if min(s.shapes[s.weight or 0][-2:]) >= 32]
    inputs = {s.name: _w8a8(s) for s in wide}
    return Network(precision.Quantized(Denoiser(net.apply, params), inputs), x)


def _w8a8(site: Site) -> precision.SiteQuant:
    codes = S(site.shapes[site.weight or 0], jnp.int8)
    w = QTensor(codes, S(precision.output_channels(site), F32), None, INT8)
    return precision.SiteQuant(w, (ActivationGrid(INT8, S((), F32)),))


def scan_cost(network: Network, way: str, num_steps: int, chip: str) -> tpu.TpuCost:
    """Return the cost of DDIM from x_T: one scan, the network as it is or lowered inside.

    way: "bf16", or W8A8 by our "kernels" or by "xla", without the weights that codes replace.
    """
    steps = diffusion.ddim(diffusion.linear(), num_steps)
    q, call_of = network.denoiser, precision.quantized_call
    if way == "bf16":
        q, call_of = dataclasses.replace(q, site_inputs={}), precision.full_call
    else:
        path = kernels.XLA if way == "xla" else kernels.tpu_path(blocks=TABLE[chip])
        q = dataclasses.replace(q, rule=precision.lower_site(path))
        q = precision.drop_weights(q, network.x, S((), F32))
    return tpu.tpu_cost(timing.scan(call_of, steps), q, network.x, topology=chip)


def by_step(cost: tpu.TpuCost, num_steps: int) -> dict[str, float]:
    """Return cycles of a step, which the compiler states once for all trips of the loop.

    step, products: by schedule and, of kernels, by instructions; issued: by instructions alone;
    outside: before and after the loop.

    Raises:
      RuntimeError: no loop over the steps.
    """
    inside = [op for op in cost.ops if op.calls >= num_steps]
    if not inside:
        raise RuntimeError(f"no loop of {num_steps} trips in what the compiler made.")

    def total(ops, name):
        return sum(op.calls * getattr(op, name) for op in ops)

    step = functools.partial(total, inside)
    return {
        "step": step("cycles") / num_steps,
        "issued": step("issued") / num_steps,
        "products": total(filter(costs.is_product, inside), "cycles") / num_steps,
        "outside": cost.cycles - step("cycles"),
    }
