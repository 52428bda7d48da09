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
    with pytest.raises(FileNotFoundError, match=r"expected config.json and a folder params"):
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
    with pytest.raises(ValueError, match="is not a model's description"):
        denoisers.load(saved)
