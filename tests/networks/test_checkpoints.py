"""A saved denoiser comes back as it was, or says in one sentence why not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks import configs, denoisers

CONFIG = configs.ModelConfig(
    shape=(4, 4, 1), network="unet", num_train_steps=50,
    arguments={"channels": (8,), "num_blocks": 1, "attention": (False,), "patch": 2},
    trained={"data": "noise", "steps": [1, 2]},
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda k: configs.init_params(CONFIG, k), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


@pytest.fixture
def saved(tmp_path, params):
    denoisers.save(tmp_path / "model", params, CONFIG)
    return tmp_path / "model"


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    (path / "SHA256SUMS").unlink()


def test_a_checkpoint_returns_parameters_config_schedule_and_a_function(saved, params):
    denoiser = denoisers.load(saved)
    jax.tree.map(np.testing.assert_array_equal, denoiser.params, params)
    assert denoiser.config == CONFIG
    assert denoiser.schedule.num_train_steps == 50
    x, t = jnp.ones((2, 4, 4, 1), jnp.float32), jnp.float32(3)
    assert jax.eval_shape(denoiser.eps_fn, denoiser.params, x, t).shape == x.shape


def test_saving_again_replaces(saved, params):
    denoisers.save(saved, jax.tree.map(jnp.zeros_like, params), CONFIG)
    assert not any(np.any(p) for p in jax.tree.leaves(denoisers.load(saved).params))


def test_a_missing_checkpoint_says_what_was_expected(tmp_path):
    forms = "expected config.json and a folder params.*, or diffusers' config.json with _class"
    with pytest.raises(FileNotFoundError, match=rf"got no checkpoint, {forms}.*save_pretrained"):
        denoisers.load(tmp_path)
    for name in ("e.bin", "a.ckpt", "b.py", "c.md", "d.txt"):
        (tmp_path / name).touch()
    among = "got no checkpoint among a.ckpt, b.py, c.md, d.txt and 1 more"
    with pytest.raises(FileNotFoundError, match=rf"{among}, {forms}"):
        denoisers.load(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"channels": [16]}, {"num_blocks": 2}, {"attention": [True]}, {"patch": 1}]
)
def test_parameters_of_another_network_are_refused(saved, changes):
    edit_config(saved, arguments={**CONFIG.arguments, **changes})
    with pytest.raises(ValueError, match=r"do not fit the network|expected .* config.json"):
        denoisers.load(saved)


def test_parameters_that_are_not_finite_are_refused(tmp_path, params):
    leaves, treedef = jax.tree.flatten(params)
    leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan)
    denoisers.save(tmp_path, jax.tree.unflatten(treedef, leaves), CONFIG)
    with pytest.raises(
        ValueError, match="got NaN or infinite values, expected finite numbers; retrain"
    ):
        denoisers.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", '{"chanels": [8]}', '{"shape": [4, 4, 1], "depth": 3}', "[]"]
)
def test_a_config_that_describes_no_model_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    (saved / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="is not a model's description"):
        denoisers.load(saved)


def damages(path, num, rng):
    """Bytes of a file with one flipped bit, or cut short, `num` of each."""
    whole = path.read_bytes()
    for _ in range(num):
        i = rng.integers(len(whole))
        yield whole[:i] + bytes([whole[i] ^ 1 << rng.integers(8)]) + whole[i + 1 :]
        yield whole[: rng.integers(len(whole))]


def test_a_file_of_a_checkpoint_that_is_damaged_is_refused_by_name(saved):
    rng = np.random.default_rng(0)
    for path in (p for p in saved.rglob("*") if p.is_file() and p.stat().st_size):
        whole = path.read_bytes()
        for damaged in damages(path, 3, rng):
            path.write_bytes(damaged)
            named = "SHA256SUMS" if path.name == "SHA256SUMS" else str(path)
            with pytest.raises(ValueError, match="damaged or changed") as refused:
                denoisers.load(saved)
            assert named in str(refused.value)
            assert "fetch or train the checkpoint again" in str(refused.value)
        path.write_bytes(whole)
    denoisers.load(saved)


def test_a_checkpoint_without_sums_loads_with_a_word_and_damage_that_shows_is_refused(
    saved, params, capsys
):
    (saved / "SHA256SUMS").unlink()
    jax.tree.map(np.testing.assert_array_equal, denoisers.load(saved).params, params)
    assert capsys.readouterr().err.startswith(f"note: {saved} has no SHA256SUMS")
    for path in (saved / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="The parameters in"):
        denoisers.load(saved)


def test_a_checkpoint_that_is_replaced_and_not_to_the_end_does_not_load(saved, params, monkeypatch):
    def killed(files):
        raise KeyboardInterrupt

    monkeypatch.setattr(denoisers._files, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        denoisers.save(saved, jax.tree.map(jnp.zeros_like, params), CONFIG)
    with pytest.raises(ValueError, match="damaged or changed"):
        denoisers.load(saved)
