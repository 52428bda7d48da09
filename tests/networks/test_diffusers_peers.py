"""Networks of diffusers 0.42.1 itself, drawn at random, saved by it and read here, compute alike.

Largest difference over the largest output, float32 on both sides: 2e-6 of the small networks and
6e-6 of the one for CIFAR-10, measured with torch 2.13.0. Needs the extra `peers`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from tests.networks import folders
from tests.worlds import quick_jit

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.usefixtures("standard_promotion")
TIMES = np.array([1, 777])  # diffusers' 0 and 776
SMALL = {
    "sample_size": 16, "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 8,
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
CHANGES = {
    "as it is": {},
    "as for CIFAR": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
                     "attention_head_dim": None, "norm_eps": 1e-6},
    "time as scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "norm of the middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "residual resampling with attention": {"downsample_type": "resnet", "upsample_type": "resnet",
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
    "residual resampling": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D")},
    "three levels": {"block_out_channels": (16, 16, 32), "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D")},
    "divided middle": {"mid_block_scale_factor": 1.7},
    "no middle": {"mid_block_type": None},
    "no attention in the middle": {"add_attention": False},
    "centred": {"center_input_sample": True, "time_embedding_dim": 40},
    "learned variance": {"out_channels": 6},
    "classes": {"num_class_embeds": 5},
}  # fmt: skip


def drawn(network):
    """The network with all parameters random, biases and norms too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def largest_difference(network, folder, channels, side, labels, scheduler=None):
    """Save, load, run both; the largest difference over the largest output."""
    network.save_pretrained(folder / "unet")
    (scheduler or diffusers.DDPMScheduler()).save_pretrained(folder / "scheduler")
    denoiser = qd.load(folder)
    x = np.random.default_rng(0).normal(size=(2, channels, side, side)).astype(np.float32)
    labels = [] if labels is None else [np.array(labels)]
    with torch.no_grad():
        inputs = map(torch.from_numpy, (x, TIMES - 1, *labels))
        expected = network(*inputs).sample.numpy().transpose(0, 2, 3, 1)[..., :channels]
    t = jnp.asarray(TIMES, jnp.float32)
    got = quick_jit(denoiser.net_fn)(denoiser.params, x.transpose(0, 2, 3, 1), t, *labels)
    num = sum(leaf.size for leaf in jax.tree.leaves(denoiser.params))
    return np.abs(got - expected).max() / np.abs(expected).max(), num


@pytest.mark.parametrize("name", CHANGES)
def test_a_unet_is_diffusers(name, tmp_path):
    fields = SMALL | CHANGES[name]
    network = drawn(diffusers.UNet2DModel(**fields))
    labels = [0, 4] if "num_class_embeds" in fields else None
    difference, num = largest_difference(network, tmp_path, 3, 16, labels)
    assert num == network.num_parameters()
    assert difference <= 1e-5


@pytest.mark.slow
def test_the_network_for_cifar_is_diffusers(tmp_path):
    fields = {name: value for name, value in folders.CIFAR.items() if not name.startswith("_")}
    network = drawn(diffusers.UNet2DModel(**fields))
    difference, num = largest_difference(network, tmp_path, 3, 32, None)
    assert num == 35_746_307
    assert difference <= 2e-5


def test_a_sampling_run_is_diffusers_ddim(tmp_path):
    """Ten steps on one noise; "trailing" times are ours, 1000, 900, ..., 100, and then the data."""
    network = drawn(diffusers.UNet2DModel(**SMALL))
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    network.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    denoiser = qd.load(tmp_path)
    x = np.array(denoiser.draw(jax.random.key(0), 2).x_T)
    steps = qd.ddim(denoiser.schedule, 10)
    got = np.asarray(qd.sample(denoiser, steps, jax.random.key(0), 2, x_T=x))
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == list(range(999, 0, -100))
    expected = torch.from_numpy(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            expected = scheduler.step(network(expected, t).sample, t, expected).prev_sample
    expected = expected.numpy().transpose(0, 2, 3, 1)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def dit():
    return drawn(diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=7,
    ))  # fmt: skip


def test_a_dit_is_diffusers_with_labels_and_without(tmp_path):
    """Its blocks share one embedding, as in all that was trained; label 7 is no class."""
    network = dit()
    for block in network.transformer_blocks:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    difference, _ = largest_difference(
        network, tmp_path, 4, 8, [3, 7], diffusers.DDIMScheduler(prediction_type="v_prediction")
    )
    assert difference <= 1e-5
    assert qd.load(tmp_path).prediction == "v"


def test_a_dit_with_an_embedding_for_each_block_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"transformer_blocks.1.* got an embedding of its own"):
        largest_difference(dit(), tmp_path, 4, 8, [3, 7])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("DDPMScheduler", {}), ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
     ("PNDMScheduler", {"beta_schedule": "scaled_linear", "beta_start": 0.00085,
                        "beta_end": 0.012}),
     ("DDPMScheduler", {"beta_schedule": "sigmoid", "num_train_timesteps": 200})],
)  # fmt: skip
def test_schedules_are_diffusers_to_its_float32(name, kwargs, tmp_path):
    scheduler = getattr(diffusers, name)(**kwargs)
    diffusers.UNet2DModel(**SMALL).save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    ratio = qd.load(tmp_path).schedule.alpha_bar[1:] / scheduler.alphas_cumprod.double().numpy()
    assert np.abs(ratio - 1).max() <= 2e-5
