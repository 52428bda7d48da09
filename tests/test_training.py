"""Training: resumption is exact, the average follows its recursion, divergence is loud."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import fitting
from qdiffjax import diffusion, training
from qdiffjax.diffusion import losses
from qdiffjax.networks import configs, data
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("standard_promotion")


CONFIG = training.TrainConfig(
    num_steps=6, batch_size=4, learning_rate=0.1, warmup_steps=2, log_every=1, save_every=100
)
IMAGES = np.random.default_rng(0).normal(size=(10, 2, 2, 1)).astype(np.float32)
PARAMS = {"w": jnp.ones((4, 3), jnp.float32), "b": jnp.zeros((1, 3), jnp.float32)}


def loss_fn(params, key, batch):
    noise = jax.random.normal(key, (batch.shape[0], 3), jnp.float32)
    return jnp.mean((batch.reshape(-1, 4) @ params["w"] + params["b"] - noise) ** 2)


def fit(config=CONFIG, loss_fn=loss_fn, images=IMAGES, **kwargs):
    return training.fit(loss_fn, PARAMS, images, config, progress=False, **kwargs)


def assert_same_bits(a, b):
    chex.assert_trees_all_equal(a, b, strict=True)
    assert all(map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(),
                   jax.tree.leaves(a), jax.tree.leaves(b)))  # fmt: skip


def interrupt_after(monkeypatch, num_steps):
    make = training.make_train_step

    def interrupted(*args):
        train_step, calls = make(*args), []

        def step(state, images):
            if len(calls) == num_steps:
                raise KeyboardInterrupt
            calls.append(None)
            return train_step(state, images)

        return step

    monkeypatch.setattr(training, "make_train_step", interrupted)


def test_an_interrupted_and_resumed_run_is_the_uninterrupted_run_to_the_bit(tmp_path, monkeypatch):
    whole = fit()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            fit(directory=tmp_path)
    resumed = fit(directory=tmp_path)
    assert int(resumed.step) == 6
    assert_same_bits(resumed, whole)
    again = fit(directory=tmp_path)  # a finished run has nothing left to do
    assert_same_bits(again, whole)


def test_a_run_cannot_be_resumed_by_another_model(tmp_path):
    fit(directory=tmp_path)
    other = {"w": jnp.ones((4, 5), jnp.float32), "b": jnp.zeros((1, 5), jnp.float32)}
    with pytest.raises(ValueError, match="does not fit this model or these settings"):
        training.fit(loss_fn, other, IMAGES, CONFIG, directory=tmp_path, progress=False)


def test_the_average_follows_its_recursion():
    step = training.make_train_step(loss_fn, CONFIG)
    state = training.init_state(PARAMS, CONFIG)
    expected = np.asarray(PARAMS["w"], np.float64)
    for n in range(4):
        state, _ = step(state, jnp.asarray(IMAGES))
        decay = min(CONFIG.ema_decay, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["w"], np.float64)
    assert_close(state.ema["w"], expected, factor=16)
    assert int(state.step) == 4


def test_training_leaves_the_callers_parameters_alone():
    before = jax.tree.map(np.array, PARAMS)
    fit()
    assert_same_bits(PARAMS, before)


def test_the_rate_rises_stays_and_falls_to_zero():
    # Under Adam with gradient 1, every update is minus the rate (up to its epsilon, 1e-8).
    config = training.TrainConfig(
        num_steps=10, learning_rate=0.5, warmup_steps=2, decay_fraction=0.4, max_norm=10.0
    )
    optimizer = training.make_optimizer(config)
    w = jnp.float32(0)
    state, rates = optimizer.init(w), []
    for _ in range(11):
        update, state = optimizer.update(jnp.float32(1), state, w)
        rates.append(-float(update))
    expected = [0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125, 0]
    np.testing.assert_allclose(rates, expected, atol=1e-5)


def test_the_loss_on_digits_goes_down():
    config = training.TrainConfig(
        num_steps=200, batch_size=64, learning_rate=3e-3, warmup_steps=10, log_every=50
    )
    schedule = diffusion.linear(100)

    def eps_fn(params, x, t):
        flat = x.reshape(x.shape[0], -1)
        time = jnp.broadcast_to(jnp.reshape(t / 100, (-1, 1)), (x.shape[0], 1))
        h = jax.nn.silu(jnp.concatenate([flat, time], -1) @ params["a"])
        return (h @ params["b"]).reshape(x.shape)

    def digits_loss(params, key, batch):
        return losses.prediction_loss(eps_fn, params, key, batch, schedule)

    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(65, 64)) / 8, "b": 0 * rng.normal(size=(64, 64))}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = training.fit(digits_loss, params, data.digits(), config, progress=False)
    curve = np.asarray(state.losses)
    assert np.all(np.isfinite(curve))
    # The start predicts zero, whose loss is E|eps|^2 = 1.
    assert 0.3 < curve[0] < 1.1
    assert curve[-1] < 0.7 * curve[0]


def test_a_loss_that_diverges_raises_and_keeps_the_last_good_checkpoint(tmp_path):
    def explodes(params, key, batch):
        return loss_fn(params, key, batch) + jnp.log(1.05 - jnp.mean(jnp.abs(params["w"] - 1) * 2))

    config = training.TrainConfig(
        num_steps=40, batch_size=4, learning_rate=0.1, warmup_steps=0, log_every=20, save_every=1
    )
    with pytest.raises(
        FloatingPointError, match=r"loss at step 20: got nan, .*; lower the learning rate"
    ):
        fit(config, explodes, directory=tmp_path)
    steps = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert steps
    assert steps[-1] < 20


def test_a_gradient_is_clipped_to_its_norm_before_adam_sees_it():
    """Adam by hand (Kingma & Ba 2015, algorithm 1) on g / 5 and g: norms 5 and 0.1 against 1."""
    config = training.TrainConfig(num_steps=100, learning_rate=0.5, warmup_steps=0, max_norm=1.0)
    optimizer, w = training.make_optimizer(config), jnp.zeros(2, jnp.float32)
    state, m, v = optimizer.init(w), np.zeros(2), np.zeros(2)
    for n, (g, clipped) in enumerate([([3.0, 4.0], [0.6, 0.8]), ([0.1, 0.0], [0.1, 0.0])], 1):
        update, state = optimizer.update(jnp.asarray(g, jnp.float32), state, w)
        m, v = 0.9 * m + 0.1 * np.array(clipped), 0.999 * v + 0.001 * np.array(clipped) ** 2
        expected = -0.5 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def matmul_dtypes(jaxpr):
    """The dtypes of all operands of products and convolutions, inside every call."""
    found = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found |= {v.aval.dtype for v in eqn.invars}
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            found |= matmul_dtypes(inner) if hasattr(inner, "eqns") else set()
    return found


NETWORK = configs.ModelConfig(
    (4, 4, 1), "dit", {"patch": 2, "width": 8, "depth": 1, "num_heads": 2}, num_classes=2
)  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_products_compute_in_the_dtype_while_parameters_average_and_loss_stay_float32(dtype):
    params = jax.eval_shape(lambda key: configs.init_params(NETWORK, key), jax.random.key(0))
    step = training.make_train_step(fitting.make_loss(NETWORK, dtype=dtype), CONFIG)
    state = jax.eval_shape(lambda p: training.init_state(p, CONFIG), params)
    batch = jnp.zeros((5, 4, 4, 1), jnp.float32), jnp.zeros(5, jnp.int32)
    traced = step.trace(state, batch)
    assert matmul_dtypes(traced.jaxpr.jaxpr) == {jnp.dtype(dtype)}
    new, loss = traced.out_info
    floats = jax.tree.leaves((new.params, new.ema, new.opt_state[1][0].mu, loss))
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


def test_master_weights_keep_updates_that_bfloat16_would_lose():
    """From 1, two hundred steps of 1e-5: in bfloat16, whose spacing there is 2^-8, none counts."""
    config = training.TrainConfig(
        num_steps=200, batch_size=2, learning_rate=1e-5, warmup_steps=0, decay_fraction=0.0
    )

    def bfloat16_loss(params, key, batch):
        return jnp.sum(params["w"].astype(jnp.bfloat16).astype(jnp.float32))

    params = {"w": jnp.ones(3, jnp.float32)}
    state = training.fit(bfloat16_loss, params, IMAGES, config, progress=False)
    np.testing.assert_allclose(state.params["w"], 1 - 199e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_steps", 0), ("batch_size", -1), ("log_every", 0), ("learning_rate", 0.0),
     ("max_norm", float("nan")), ("ema_decay", 1.5)],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=f"got {name}={value}, expected"):
        training.TrainConfig(**{name: value})


@pytest.mark.parametrize("examples", [(IMAGES, np.zeros(9)), IMAGES[:0]])
def test_examples_that_do_not_belong_together_are_refused(examples):
    with pytest.raises(ValueError, match=r"got arrays of \[.*\] examples, expected as many"):
        fit(images=examples)
