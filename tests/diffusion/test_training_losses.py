"""Losses of networks that predict x_0, v or the flow, weightings, dropped labels, autoencoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from qdiffjax import diffusion as d
from qdiffjax.diffusion import losses
from tests.tolerances import assert_close
from tests.worlds import quick_jit

SCHEDULE = d.linear(50, 1e-3, 0.2)
X_0 = jax.random.normal(jax.random.key(5), (64, 3))
# name -> prediction, and its target p x_0 + q eps written out
TARGETS = {
    "eps": (d.eps_prediction, lambda level: (0.0, 1.0)),
    "x0": (d.x0_prediction, lambda level: (1.0, 0.0)),
    "v": (d.v_prediction, lambda level: (-level.sigma, level.alpha)),
    "flow": (d.flow_prediction, lambda level: (-1.0, 1.0)),
}


def tanh_as(name, process=SCHEDULE):
    """The network eps = tanh(x), saying the same in another parameterization."""

    def net_fn(params, x, t):
        level = jax.tree.map(lambda a: a[:, None], process(t))
        eps = jnp.tanh(x)
        p, q = TARGETS[name][1](level)
        return p * (x - level.sigma * eps) / level.alpha + q * eps

    return net_fn


def test_the_unweighted_loss_of_eps_is_the_simple_loss():
    args = (tanh_as("eps"), None, jax.random.key(0), X_0, SCHEDULE)

    def simple_loss(eps_fn, params, key, x_0, schedule):
        """Ho et al. 2020, eq. 14, per element: times 1 ... T, then the noise, by the same keys."""
        key_t, key_eps = jax.random.split(key)
        t = jax.random.randint(key_t, (x_0.shape[0],), 1, schedule.num_train_steps + 1)
        t, eps = t.astype(x_0.dtype), jax.random.normal(key_eps, x_0.shape, x_0.dtype)
        residual = eps - eps_fn(params, losses.add_noise(x_0, eps, schedule(t)), t)
        return jnp.mean(jnp.sum(residual**2, axis=tuple(range(1, x_0.ndim)))) / x_0[0].size

    got, simple = quick_jit(lambda: (losses.prediction_loss(*args), simple_loss(*args)))()
    np.testing.assert_array_equal(got, simple)


@pytest.mark.slow
@pytest.mark.parametrize("process", [SCHEDULE, d.Flow()], ids=["linear", "flow"])
def test_a_weighted_loss_does_not_depend_on_what_the_network_predicts(process):
    def loss(name, weight_fn):
        return losses.prediction_loss(
            tanh_as(name, process), None, jax.random.key(0), X_0, process,
            prediction=TARGETS[name][0], weight_fn=weight_fn,
        )  # fmt: skip

    values = quick_jit(
        lambda: [[loss(name, weigh) for name in TARGETS] for weigh in (losses.min_snr, losses.p2)]
    )()
    # Near t = 0 of the flow, x_0 and eps differ by a division by sigma of 1e-2 or less.
    np.testing.assert_allclose(values, np.array(values)[:, :1] * np.ones(4), rtol=1e-9)


def test_the_loss_of_answering_zero_is_the_variance_of_the_target():
    """Of standard normal data: alpha^2 + sigma^2 = 1 for v, two independent normals for flow."""
    x_0 = jax.random.normal(jax.random.key(1), (20_000, 2))
    values = quick_jit(lambda x_0: [
        losses.prediction_loss(
            lambda params, x, t: jnp.zeros_like(x), None, jax.random.key(2), x_0, SCHEDULE,
            prediction=prediction,
        )
        for prediction, _ in TARGETS.values()
    ])(x_0)  # fmt: skip
    for name, loss in zip(TARGETS, values, strict=True):
        expected = 2.0 if name == "flow" else 1.0
        assert abs(loss - expected) < 5 * expected * np.sqrt(2 / 40_000)


def test_min_snr_weighs_x_0_by_the_clipped_snr_and_v_by_that_over_snr_plus_one():
    level = SCHEDULE(jnp.arange(1.0, 51.0))
    snr = (level.alpha / level.sigma) ** 2
    assert jnp.min(snr) < 5 < jnp.max(snr)
    for name, expected in (
        ("eps", np.minimum(snr, 5) / snr), ("x0", np.minimum(snr, 5)),
        ("v", np.minimum(snr, 5) / (snr + 1)),
    ):  # fmt: skip
        gain = losses.eps_gain(level, TARGETS[name][0])
        assert_close(losses.min_snr(level) * gain**2 / expected, np.ones(50), factor=64)


def test_p2_weighs_eps_by_a_power_of_one_over_k_plus_snr():
    level = d.NoiseLevel(jnp.asarray([0.6, 0.0]), jnp.asarray([0.8, 1.0]))  # snr 9/16 and 0
    assert_close(losses.p2(level), [16 / 25, 1.0])
    assert_close(losses.p2(level, k=0.5, gamma=2.0), [(16 / 17) ** 2, 4.0])


def test_labels_are_dropped_at_the_rate_and_else_kept():
    label = jnp.arange(40_000) % 10
    drop = functools.partial(losses.drop_labels, jax.random.key(0), label, 10)
    np.testing.assert_array_equal(drop(0.0), label)
    np.testing.assert_array_equal(drop(1.0), np.full(40_000, 10))
    dropped = np.asarray(drop(0.1)) == 10
    assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.09 / 40_000)
    np.testing.assert_array_equal(drop(0.1)[~dropped], label[~dropped])


def test_the_loss_of_an_autoencoder_is_its_error_plus_the_divergence_of_its_latent():
    """One latent a sample, N(m, s^2) against N(0, 1): the KL by quadrature."""
    x, m, s = jnp.asarray([[1.0, 2.0], [0.0, -1.0]]), np.array([0.7, -0.2]), np.array([0.5, 1.5])
    q, p = [stats.norm(*ms) for ms in zip(m, s, strict=True)], stats.norm()
    kl = sum(
        integrate.quad(lambda z, q=q: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12)[0] for q in q
    )

    def autoencoder_fn(params, x, key):
        return x + 0.5, jnp.asarray(m)[:, None], jnp.asarray(2 * np.log(s))[:, None]

    for weight in (0.0, 0.3):
        loss = losses.autoencoder_loss(autoencoder_fn, None, None, x, kl_weight=weight)
        np.testing.assert_allclose(loss, 0.25 + weight * kl / 4, rtol=1e-9)
