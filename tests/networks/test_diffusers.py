"""Folders of diffusers are read as what they say, or refused in one line that names what is not."""

import collections
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from experiments.harness import subject
from qdiffjax.networks import configs, denoisers, diffusers, safetensors
from tests.networks import folders
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = normal32(3, 2, 4, 4, 1)
TIMES = np.array([1, 90])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def denoiser(folder):
    return qd.load(folder)


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_network_is_what_its_arrays_say_by_their_names_at_times_from_one(denoiser):
    out = quick_jit(denoiser.net_fn)(denoiser.params, X, jnp.asarray(TIMES, jnp.float32))
    expected = [folders.unet(folders.arrays(), np.float64(x[..., 0])[None], t - 1)[0]
                for x, t in zip(X, TIMES, strict=True)]  # fmt: skip
    assert_close(out[..., 0], np.stack(expected))


def test_the_schedule_is_the_products_of_its_betas(denoiser):
    alpha_bar = np.cumprod(1 - np.linspace(0.001, 0.05, 100))
    assert_close(denoiser.schedule.alpha_bar, np.concatenate([[1.0], alpha_bar]))
    assert (denoiser.shape, denoiser.prediction) == ((4, 4, 1), "eps")


def test_the_network_for_cifar_has_the_published_size(tmp_path):
    """35.7M parameters (Ho et al. 2020, appendix B), and its sites by their counts."""
    found = diffusers.described(folders.write(tmp_path, {}, folders.CIFAR))
    assert sum(leaf.size for leaf in jax.tree.leaves(found.expected)) == 35_746_307
    denoiser = denoisers.make_denoiser(found.config, found.expected)
    # 8, 2 and 12 residual blocks of 3 layers, 1 and 12 with skips; 6 attentions of 4 layers and 2
    # products; 6 resamplings; time, ends, edges.
    assert len(denoiser.sites()) == 22 * 3 + 13 + 6 * 6 + 6 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("word", "ours", "beta_schedule", "schedule"),
    [("v_prediction", "v", "scaled_linear", qd.diffusion.scaled_linear(100, 0.001, 0.05)),
     ("sample", "x_0", "squaredcos_cap_v2", qd.diffusion.cosine(100)),
     ("epsilon", "eps", "sigmoid", qd.diffusion.sigmoid_betas(100, 0.001, 0.05))],
)  # fmt: skip
def test_words_of_the_scheduler_have_their_meaning(tmp_path, word, ours, beta_schedule, schedule):
    changes = folders.SCHEDULER | {"prediction_type": word, "beta_schedule": beta_schedule}
    config = denoisers.load_config(folders.write(tmp_path, scheduler=changes))
    assert config.prediction == ours
    assert denoisers.make_schedule(config) == schedule


def params_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize("given", ["", "unet"])
def test_a_pipeline_and_its_model_are_one_network(tmp_path, denoiser, given):
    found = qd.load(folders.write(tmp_path, parts=("unet", "scheduler")) / given)
    params_equal(found, denoiser)
    assert found.schedule == denoiser.schedule


def test_words_of_2022_for_attention_are_understood(tmp_path, denoiser):
    old = folders.arrays()
    for new, word in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                      ("to_out.0", "proj_attn")):  # fmt: skip
        old = {name.replace(f".{new}.", f".{word}."): a for name, a in old.items()}
    params_equal(qd.load(folders.write(tmp_path, old)), denoiser)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_narrow_files_become_float32_without_a_change(tmp_path, dtype):
    narrow = {name: a.astype(dtype) for name, a in folders.arrays().items()}
    wide = {name: a.astype(np.float32) for name, a in narrow.items()}
    found = [qd.load(folders.write(tmp_path / str(i), a)) for i, a in enumerate((narrow, wide))]
    params_equal(*found)
    assert {leaf.dtype for leaf in jax.tree.leaves(found[0].params)} == {jnp.dtype("float32")}


def test_weights_in_several_files_are_one_network(tmp_path, denoiser):
    path, whole = folders.write(tmp_path), list(folders.arrays().items())
    (path / folders.WEIGHTS).unlink()
    index = {}
    for i, part in enumerate((dict(whole[:9]), dict(whole[9:]))):
        (path / f"part-{i}.safetensors").write_bytes(folders.safetensors(part))
        index |= dict.fromkeys(part, f"part-{i}.safetensors")
    (path / f"{folders.WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    params_equal(qd.load(path), denoiser)
    (path / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"got no part-1.safetensors, expected weights"):
        denoisers.load_config(path)


def test_one_file_of_another_name_is_taken_and_of_two_none(tmp_path, denoiser):
    path = folders.write(tmp_path)
    (path / folders.WEIGHTS).rename(path / "diffusion_pytorch_model.fp16.safetensors")
    params_equal(qd.load(path), denoiser)
    (path / "diffusion_pytorch_model.ema.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"rename the file that is meant .here: .*ema.*fp16"
    ):
        denoisers.load_config(path)


def test_it_can_be_kept_as_a_checkpoint_of_this_house(tmp_path, denoiser):
    denoisers.save(tmp_path, denoiser.params, denoiser.config)
    again = qd.load(tmp_path)
    params_equal(again, denoiser)
    assert (again.config, again.schedule) == (denoiser.config, denoiser.schedule)


def test_its_sites_are_all_of_its_products_by_name(folder, denoiser):
    subject.check_checkpoint(str(folder))
    names = [site.name for site in denoiser.sites()]
    assert {"down_1_attn_0/attention/query/kernel", "up_0_pool/kernel"} <= set(names)
    # 8 residual blocks of 3 layers and 5 skips, 4 attentions of 4 layers and 2 products, 2 of the
    # time, conv_in, conv_out, one of each resampling, input and output.
    assert len(names) == 8 * 3 + 5 + 4 * 6 + 2 + 2 + 2 + 2
    stored = collections.Counter(site.kind for site in denoiser.with_values().sites())
    assert {kind: stored[kind] for kind in ("norm", "residual", "softmax", "skip")} == {
        "norm": 8 * 2 + 4 + 1, "residual": 8 + 4, "softmax": 4, "skip": 4
    }  # fmt: skip


def test_it_computes_in_a_narrower_type_as_other_networks_do(denoiser):
    narrow = configs.make_net_fn(denoiser.config, dtype=jnp.bfloat16)
    t = jnp.float32(5)
    out, wide = (quick_jit(fn)(denoiser.params, X, t) for fn in (narrow, denoiser.net_fn))
    assert out.dtype == wide.dtype
    assert 2**-12 < jnp.abs(out - wide).max() / jnp.abs(wide).max() < 2**-4  # a number has 2^-9


@pytest.mark.slow
def test_it_is_quantized_and_studied_as_any_network(denoiser, users_defaults):
    steps = qd.ddim(denoiser.schedule, 3)
    q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
    study = qd.study(q, steps, jax.random.key(1), 4, progress=False)
    assert study.bounds[0].holds


def test_classes_are_rows_of_the_table_and_one_is_needed(tmp_path):
    table = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    path = folders.write(tmp_path, folders.arrays() | {"class_embedding.weight": table},
                         folders.UNET | {"num_class_embeds": 3})  # fmt: skip
    found, t = qd.load(path), jnp.float32(5)
    np.testing.assert_array_equal(found.cond, [0, 1, 2])
    shifted = folders.arrays()
    shifted["time_embedding.linear_2.bias"] = shifted["time_embedding.linear_2.bias"] + table[2]
    plain = qd.load(folders.write(tmp_path / "plain", shifted))
    expected = quick_jit(plain.net_fn)(plain.params, X, t)
    assert_close(quick_jit(found.net_fn)(found.params, X, t, jnp.array([2, 2])), expected)
    for label, message in ((None, "got no label"), (3, r"got label 3, expected 0 \.\.\. 2")):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda p, label=label: found.net_fn(p, X, t, label), found.params)


def test_a_learned_variance_is_left_out(tmp_path, denoiser):
    twice, config = folders.arrays(), folders.UNET | {"out_channels": 2}
    for name in ("conv_out.weight", "conv_out.bias"):
        twice[name] = np.concatenate([twice[name], 7 + twice[name]])
    found, t = qd.load(folders.write(tmp_path, twice, config)), jnp.float32(5)
    out, expected = (quick_jit(d.net_fn)(d.params, X, t) for d in (found, denoiser))
    assert_close(out, expected)


DIT = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 4,
    "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2,
    "num_embeds_ada_norm": 3, "norm_eps": 1e-5,
}  # fmt: skip


def dit_arrays():
    found = folders.layer("pos_embed.proj", 8, 4, 2, 2) | folders.layer("proj_out_1", 16, 8)
    found |= folders.layer("proj_out_2", 32, 8)
    for block in ("transformer_blocks.0", "transformer_blocks.1"):
        embedder = f"{block}.norm1.emb"
        found[f"{embedder}.class_embedder.embedding_table.weight"] = (4, 8)
        found |= folders.layer(f"{embedder}.timestep_embedder.linear_1", 8, 256)
        found |= folders.layer(f"{embedder}.timestep_embedder.linear_2", 8, 8)
        found |= folders.layer(f"{block}.norm1.linear", 48, 8)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= folders.layer(f"{block}.attn1.{part}", 8, 8)
        found |= folders.layer(f"{block}.ff.net.0.proj", 32, 8)
        found |= folders.layer(f"{block}.ff.net.2", 8, 32)
    rng = np.random.default_rng(2)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in found.items()}
    return {name: arrays[name.replace("blocks.1.norm1.emb", "blocks.0.norm1.emb")]
            for name in arrays}  # fmt: skip


def test_a_dit_takes_each_array_to_its_place_and_one_embedding_for_all_blocks(tmp_path):
    a = dit_arrays()
    found = qd.load(folders.write(tmp_path, a, DIT, parts=("transformer", "scheduler")))
    assert (found.shape, found.config.num_classes) == ((8, 8, 4), 3)
    assert found.config.arguments == {
        "patch": 2, "width": 8, "num_heads": 2, "depth": 2, "freq_shift": 1, "mlp_epsilon": 1e-5,
        "learn_sigma": True,
    }  # fmt: skip
    p = found.params["params"]
    for ours, theirs in (
        (p["block_1"]["modulation"]["out"], "transformer_blocks.1.norm1.linear"),
        (p["block_0"]["attention"]["key"], "transformer_blocks.0.attn1.to_k"),
        (p["block_1"]["mlp"]["down"], "transformer_blocks.1.ff.net.2"),
        (p["condition"]["time_2"], "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2"),
        (p["head"]["out"], "proj_out_2"),
    ):
        np.testing.assert_array_equal(ours["kernel"], a[f"{theirs}.weight"].T)
        np.testing.assert_array_equal(ours["bias"], a[f"{theirs}.bias"])
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(ValueError, match=f"{name} in .*: got an embedding of its own, expected a"):
        qd.load(folders.write(tmp_path / "own", a | {name: a[name] + 1}, DIT))


FIELDS = [
    ({"act_fn": "gelu"}, r"act_fn in .*config.json: got 'gelu', expected 'silu' or 'swish'"),
    ({"time_embedding_type": "fourier"}, r"time_embedding_type .* got 'fourier'"),
    ({"class_embed_type": "timestep"}, r"class_embed_type .* got 'timestep', expected None"),
    ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, r"down_block_types: got .*Skip"),
    ({"mid_block_type": "Other"}, r"mid_block_type: got 'Other', expected one of"),
    ({"resnet_time_scale_shift": "spatial"}, r"resnet_time_scale_shift: got 'spatial'"),
    ({"norm_num_groups": 3}, r"block_out_channels: got .4, 8., expected multiples of norm"),
    ({"norm_num_groups": None}, r"norm_num_groups: got None, expected at least 1"),
    ({"attention_head_dim": 3}, r"attention_head_dim: got 3, expected a divisor of the widths"),
    ({"downsample_padding": 2}, r"downsample_padding: got 2, expected one of"),
    ({"cross_attention_dim": 768}, r"cross_attention_dim in .*: got 768, expected no such field"),
    ({"sample_size": 5}, r"config.json: UNet2D: got x of shape .1, 5, 5, 1., expected .*levels"),
    ({"sample_size": None}, r"sample_size in .*: got None, expected at least 1"),
    ({"out_channels": 3}, r"out_channels in .*: got 3, expected 1, or 2 with a learned variance"),
    ({"_class_name": "AutoencoderKL"}, r"_class_name in .*: got AutoencoderKL, expected one of"),
]  # fmt: skip
DIT_FIELDS = [
    ({"norm_type": "ada_norm"}, r"norm_type in .*: got 'ada_norm', expected 'ada_norm_zero'"),
    ({"_class_name": "Transformer2DModel"}, r"norm_type in .*: got 'layer_norm'"),
    ({"num_embeds_ada_norm": None}, r"num_embeds_ada_norm in .*: got None, expected at least 1"),
    ({"attention_head_dim": 3}, r"config.json: got width=6, expected a multiple of 4"),
]
SCHEDULERS = [
    ({"_class_name": "ScoreSdeVeScheduler"}, r"_class_name in .*scheduler_config.json: got Score"),
    ({"beta_schedule": "laplace"}, r"beta_schedule in .*: got 'laplace', expected one of linear"),
    ({"prediction_type": "flow"}, r"prediction_type in .*: got 'flow', expected one of epsilon"),
    ({"trained_betas": [0.1]}, r"trained_betas in .*: got \[0.1\], expected None"),
    ({"rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr in .*: got True"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [(folders.UNET | changes, message) for changes, message in FIELDS]
    + [(DIT | changes, message) for changes, message in DIT_FIELDS],
)
def test_a_field_that_is_not_built_here_is_named_before_weights_are_read(tmp_path, config, message):
    path = folders.write(tmp_path, config=config)
    (path / folders.WEIGHTS).write_bytes(b"")
    for read in (qd.load, denoisers.load_config, lambda p: subject.check_checkpoint(str(p))):
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize(("changes", "message"), SCHEDULERS)
def test_a_scheduler_that_is_not_built_here_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        denoisers.load_config(folders.write(tmp_path, scheduler=folders.SCHEDULER | changes))


@pytest.mark.parametrize(
    ("name", "message"),
    [("scheduler_config.json", r"got no scheduler_config.json, expected one beside config.json"),
     (folders.WEIGHTS, r"got no diffusion_pytorch_model.safetensors, expected weights as safe.*"
      r"here: model.bin;"),
     ("config.json", "expected config.json")],
)  # fmt: skip
def test_a_file_that_is_missing_is_named(folder, tmp_path, name, message):
    path = copied(folder, tmp_path)
    (path / "model.bin").touch()
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        qd.load(path)


def without(name):
    return {k: a for k, a in folders.arrays().items() if k != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [(without("conv_in.bias"), r"1 arrays that are not in the file: conv_in.bias"),
     (folders.arrays() | {"extra.weight": np.ones(2, np.float32)},
      r"1 arrays that nothing uses: extra.weight"),
     (folders.arrays() | {"conv_in.weight": np.ones((4, 3, 3, 3), np.float32)},
      r"conv_in.weight \(4, 3, 3, 3\): got .* expected \(3, 3, 1, 4\) for conv_in/kernel"),
     (folders.arrays() | {"conv_in.bias": np.full(4, np.nan, np.float32)},
      r"conv_in/bias in .*: got NaN or infinite values")],
    ids=["missing", "extra", "shape", "nan"],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_named(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        qd.load(folders.write(tmp_path, tensors))


def edited(whole, edit):
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


WHOLE = folders.safetensors({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "got 0 bytes, expected a header"), (WHOLE[:100], "got 100 bytes, expected a header"),
     (WHOLE[:-1], r"got 31 bytes of arrays, expected 32 as of its header; fetch it again"),
     (WHOLE + b"0", "got 33 bytes of arrays, expected 32"),
     ((3).to_bytes(8, "little") + b"abc", "got a header that is none .JSONDecodeError"),
     (edited(WHOLE, lambda h: h["a"].pop("dtype")), "got a header that is none .KeyError: 'dtype'"),
     (edited(WHOLE, lambda h: h["a"].update(dtype="F8_E4M3")), "a in .*: got dtype F8_E4M3"),
     (edited(WHOLE, lambda h: h["a"].update(shape=[3, 3])),
      r"a in .*: got 24 bytes, expected those of float32 \[3, 3\]"),
     (edited(WHOLE, lambda h: h["b"].update(data_offsets=[20, 28])),
      r"b in .*: got an array from byte 20, expected from 24")],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused(tmp_path, data, message):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        safetensors.read_tensors(tmp_path / "w.safetensors")


def test_arrays_come_back_as_they_were(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(WHOLE)
    found = safetensors.read_tensors(tmp_path / "w.safetensors")
    assert {name: (a.shape, a.dtype.name) for name, a in found.items()} == {
        "a": ((2, 3), "float32"), "b": ((4,), "float16")
    }  # fmt: skip
    np.testing.assert_array_equal(found["a"], np.ones((2, 3)))
