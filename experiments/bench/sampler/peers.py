"""The samplers of other systems, timed beside ours: qwix's int8 and torch's float32."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench import networks, torch_twin
from qdiffjax import diffusion
from qdiffjax.networks.denoisers import NETWORKS


class Peer(NamedTuple):
    """A sampler of another system.

    turn: () -> None, one run; sample: () -> samples, or None if it runs no sampler; arguments:
    bytes of the arrays it is given, or None.
    """

    turn: Callable[[], Any]
    sample: Callable[[], jax.Array] | None
    arguments: int | None


def qwix(denoiser, x, steps, last: str, *, is_static: bool) -> Peer:
    """Post-training W8A8 of qwix of the same network: symmetric, all but the layer `last`.

    Weights per channel as ours; activations per tensor as ours and calibrated on the float run if
    static, else from the data (its default: a scale for each sample or token). Static scales leave
    its products of activations in float, where its own two providers disagree about shapes. They
    come from ranges averaged over calls and samples, which clip the noise where sampling starts;
    on the shipped UNet most of its error there is that of the first convolution (measured).

    Raises:
      ImportError: qwix is not installed.
      ValueError: the network does not predict eps.
    """
    import qwix as peer

    if denoiser.config.prediction != "eps":
        raise ValueError("qwix wraps networks that predict eps here.")
    params = denoiser.params["params"]
    rule = peer.QuantizationRule(
        module_path=f"^(?!{last}$).*$", weight_qtype="int8", act_qtype="int8",
        act_static_scale=is_static or None,
        op_names=("conv_general_dilated", "dot_general") if is_static else (),
    )  # fmt: skip
    net = NETWORKS[denoiser.config.network](**denoiser.config.arguments, **_classes(denoiser))
    model = peer.quantize_model(net, peer.PtqProvider([rule]))
    t = jnp.float32(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    stats = _statistics(peer, rule, net, denoiser, x, steps) if is_static else {}
    quantized = peer.quantize_params(params, shapes, stats)

    @jax.jit
    def run(p, x):
        call = diffusion.bind(lambda p, x, t: model.apply({"params": p}, x, t), p)
        return diffusion.sample(call, x, steps, keep_trajectory=False).x_0

    return Peer(
        lambda: jax.block_until_ready(run(quantized, x)),
        lambda: run(quantized, x),
        num_bytes((quantized, x)),
    )


def _classes(denoiser) -> dict[str, int]:
    num = denoiser.config.num_classes
    return {"num_classes": num} if num else {}


def _statistics(peer, rule, net, denoiser, x, steps):
    """What qwix observes of the activations at every step of the float run."""
    model = peer.quantize_model(net, peer.QtProvider([rule]))
    call = diffusion.bind(denoiser.eps_fn, denoiser.params)
    xs = jax.jit(lambda x: diffusion.sample(call, x, steps).xs)(x)
    init = model.init(jax.random.key(0), x, jnp.float32(0))
    stats, params = init["quant_stats"], denoiser.params["params"]
    for x_t, t in zip(xs[:-1], steps.t, strict=True):
        variables = {"params": params, "quant_stats": stats}
        # Not under jit, where it leaks tracers.
        _, seen = model.apply(variables, x_t, jnp.float32(t), mutable=["quant_stats"])
        stats = seen["quant_stats"]
    return stats


def torch(denoiser, x, num_steps: int) -> Peer:
    """The same UNet in torch, float32, called as often as the sampler calls it.

    Raises:
      ImportError: torch is not installed.
      ValueError: another network than the twin's.
    """
    import torch as peer

    if denoiser.config.network != "unet" or denoiser.config.num_classes:
        raise ValueError("the twin in torch is an unconditional UNet.")
    device = networks.device()
    fn = torch_twin.unet(denoiser.params, device=device, **denoiser.config.arguments)
    there = peer.zeros(x.shape[0], x.shape[3], *x.shape[1:3], device=device)
    t = peer.tensor([500.0], device=device)
    return Peer(networks.torch_turn(fn, there, t, num_steps), None, None)


def num_bytes(tree) -> int:
    """Bytes of the arrays of a pytree, packed as devices hold them: two int4 to a byte."""
    return sum(a.size * _bits(a.dtype) // 8 for a in jax.tree.leaves(tree))


def _bits(dtype) -> int:
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    return jnp.iinfo(dtype).bits if is_integer else 8 * jnp.dtype(dtype).itemsize
