"""Networks and samplers of other systems, timed beside ours: qwix's int8, torch, diffusers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import torch_twin
from experiments.harness import timing
from qdiffjax import _tables as tables
from qdiffjax import diffusion
from qdiffjax._checks import require
from qdiffjax.networks.configs import build

# Of a sampler that is timed beside others; the table of a benchmark adds its own.
COLUMNS = (
    ("", lambda r: r["name"]), ("ms\na call", tables.numbers("milliseconds")),
    ("x\nfloat32", tables.numbers("over_float")),
    ("CPU x\nfloat32", tables.numbers("cpu_over_float")),
    ("MB", tables.numbers("argument_bytes", unit=1e6)), ("error", tables.numbers("error")),
)  # fmt: skip


def by_checkpoint(rows, columns) -> list:
    """Return a table of these columns for each checkpoint, and a line for each run that failed."""
    return [*tables.grouped(rows, "checkpoint", columns),
            *tables.reasons(rows, "missing", "checkpoint", "name")]  # fmt: skip


class Peer(NamedTuple):
    """A sampler, ours or of another system.

    turn: one run, which returns the samples, or None if it runs no sampler; num_bytes: of the
    arrays it is given, or None.
    """

    turn: Callable[[], Any]
    num_bytes: int | None = None


def qwix(denoiser, x, steps, last: str | None, *, is_static: bool) -> Peer:
    """Return W8A8 by qwix of the same network after training: symmetric, all but the layer
    `last`; None leaves none out.

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

    config, params = denoiser.config, denoiser.params["params"]
    require(config.prediction == "eps", "qwix", got=f"prediction {config.prediction}",
            expected="a network that predicts eps",
            remedy="choose another checkpoint")  # fmt: skip
    rule = peer.QuantizationRule(
        module_path=f"^(?!{last}$).*$" if last else ".*", weight_qtype="int8", act_qtype="int8",
        act_static_scale=is_static or None,
        op_names=("conv_general_dilated", "dot_general") if is_static else (),
    )  # fmt: skip
    net = build(config)
    model = peer.quantize_model(net, peer.PtqProvider([rule]))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, jnp.float32(0))["params"]
    stats = _statistics(peer, rule, net, denoiser, x, steps) if is_static else {}
    quantized = peer.quantize_params(params, shapes, stats)

    def call_of(p):
        return diffusion.bind(lambda p, x, t: model.apply({"params": p}, x, t), p)

    run = jax.jit(timing.scan(call_of, steps))
    return Peer(lambda: timing.finish(run, quantized, x), num_bytes((quantized, x)))


def _statistics(peer, rule, net, denoiser, x, steps):
    """Return what qwix observes of the activations at every step of the float run."""
    model = peer.quantize_model(net, peer.QtProvider([rule]))
    call = diffusion.bind(denoiser.eps_fn, denoiser.params)
    xs = jax.jit(lambda x: diffusion.sample(call, x, steps).xs)(x)
    stats = model.init(jax.random.key(0), x, jnp.float32(0))["quant_stats"]
    for x_t, t in zip(xs[:-1], steps.t, strict=True):
        variables = {**denoiser.params, "quant_stats": stats}
        # Not under jit, where it leaks tracers.
        _, seen = model.apply(variables, x_t, jnp.float32(t), mutable=["quant_stats"])
        stats = seen["quant_stats"]
    return stats


def torch(denoiser, x, num_steps: int) -> Peer:
    """Return the same UNet in torch, float32, called as often as the sampler calls it.

    Raises:
      ImportError: torch is not installed.
      ValueError: another network than the twin's.
    """
    return Peer(torch_turn(*twin(denoiser, x), num_steps))


def twin(denoiser, x) -> tuple[Callable[..., Any], Any, Any]:
    """Return the same UNet in torch, and its arguments x [b, c, h, w] and t [1]; see `torch`."""
    import torch

    require(has_twin(denoiser), "the twin in torch", got=denoiser.config.network,
            expected="an unconditional UNet",
            remedy="choose another checkpoint")  # fmt: skip
    fn = torch_twin.unet(denoiser.params, device=device(), **denoiser.config.arguments)
    x = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy()).to(device())
    return fn, x, torch.tensor([500.0], device=device())


def has_twin(denoiser) -> bool:
    """Return whether `torch_twin` has this network: an unconditional UNet."""
    return denoiser.config.network == "unet" and not denoiser.config.num_classes


def device() -> str:
    """Return where torch runs: on the kind of device that JAX uses."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_turn(fn, x, t, num_calls: int) -> Callable[[], None]:
    """Return a function that calls a function of torch `num_calls` times, without gradients."""
    import torch

    def turn():
        with torch.no_grad():
            for _ in range(num_calls):
                fn(x, t)
            if device() == "cuda":
                torch.cuda.synchronize()

    return turn


def diffusers(denoiser, x, num_calls: int) -> tuple[Callable[[], None], float]:
    """Time a diffusers UNet with the widths of ours on images folded alike, another network.

    Returns:
      A function that calls it `num_calls` times, and its multiply-adds a sample as torch counts
      them: without attention's products on a CPU.

    Raises:
      ImportError: diffusers is not installed.
    """
    import diffusers as peer
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    a = denoiser.config.arguments
    side, channels = x.shape[1] // a["patch"], x.shape[3] * a["patch"] ** 2
    net = peer.UNet2DModel(
        sample_size=side, in_channels=channels, out_channels=channels,
        block_out_channels=a["channels"], layers_per_block=a["num_blocks"],
        down_block_types=tuple("AttnDownBlock2D" if b else "DownBlock2D" for b in a["attention"]),
        up_block_types=tuple("AttnUpBlock2D" if b else "UpBlock2D" for b in a["attention"][::-1]),
        norm_num_groups=8, attention_head_dim=a["channels"][-1] // 4,
    ).eval().to(device(), memory_format=torch.channels_last)  # fmt: skip
    z = torch.randn(x.shape[0], channels, side, side, device=device())
    z = z.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(z, 500)
    return torch_turn(net, z, 500, num_calls), counter.get_total_flops() / 2 / x.shape[0]


def num_bytes(tree) -> int:
    """Return the bytes of a pytree as devices hold its arrays: two int4 to a byte."""
    return sum(a.size * jax.dtypes.itemsize_bits(a.dtype) // 8 for a in jax.tree.leaves(tree))
