"""Theorems about which steps matter, about labels, and about gains from logarithmic norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, labels
from qdiffjax.analysis import certificates, divergences
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import coherence, propagation
from qdiffjax.analysis.gains import flows
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(200, 1e-3, 0.05)
STEPS = diffusion.ddim(SCHEDULE, 20, eta=1.0)


def test_contributions_sum_to_the_mean_square():
    terms = np.random.default_rng(0).normal(size=(7, 5, 2, 3))
    profile = coherence.error_profile(terms)
    assert_close(jnp.sum(profile), np.mean(np.sum(terms.sum(0) ** 2, axis=(1, 2))), factor=100)


def test_shares_of_a_worked_case():
    """Ten steps 1 ... 10, sum 55: first tenth 1, last 10; a quarter takes half of a third step."""
    profile = np.arange(1.0, 11.0)
    assert_close(jnp.stack(coherence.end_shares(profile)), np.array([1, 10]) / 55)
    assert_close(jnp.stack(coherence.end_shares(profile, 0.25)), np.array([4.5, 23]) / 55)
    assert_close(jnp.stack(coherence.end_shares(profile, 1.0)), np.ones(2))


def test_a_fraction_outside_0_1_is_refused():
    with pytest.raises(ValueError, match=r"fraction: got 1\.5"):
        coherence.end_shares(np.ones(3), 1.5)


def test_both_profiles_of_one_sampler_have_closed_forms_that_disagree():
    """A constant error of eps on N(0, I): both profiles in closed form, no sampling error.

    There eps = sigma x, the mean map of a step multiplies by alpha_t / alpha_s (DDPM telescopes:
    sqrt(abar_t) c^2 / v_t from t to 0), so a local error b_i bias arrives as alpha_{s_i} b_i bias.
    """
    bias = np.array([0.02, 0.0])
    call = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), gaussian_law(np.zeros(2), np.eye(2)))
    key, x_T = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 2))

    def quantized(x, t, inputs, state=()):
        return call(x, t, None)[0] + bias[None], None, state

    @jax.jit
    def measure(x_T):
        xs_hat = diffusion.sample(quantized, x_T, STEPS, key=key).xs
        return (divergences.path_kl(call, quantized, x_T, STEPS, key=key),
                propagation.fan(call, xs_hat, STEPS, key=key))  # fmt: skip

    kl_terms, terms = measure(x_T)
    b = np.asarray(STEPS.coeffs.eps)
    arrived = SCHEDULE.exact(np.asarray(STEPS.s)).alpha * b
    expected = 4e-4 * arrived * arrived.sum()
    np.testing.assert_allclose(coherence.error_profile(terms), expected, rtol=1e-9)
    kl = np.append((b[:-1] / np.asarray(STEPS.coeffs.noise)[:-1]) ** 2 / 2 * 4e-4, 0.0)
    np.testing.assert_allclose(np.mean(kl_terms, axis=1), kl, rtol=1e-9)
    found = coherence.conflict(kl_terms, terms, fraction=0.2)
    by_hand = [kl[:4].sum() / kl.sum(), kl[-4:].sum() / kl.sum(),
               arrived[:4].sum() / arrived.sum(), arrived[-4:].sum() / arrived.sum()]  # fmt: skip
    np.testing.assert_allclose(jnp.stack([*found.kl, *found.error]), by_hand, rtol=1e-9)
    assert found.kl.last > 1.3 * found.error.last


# Labels.


@pytest.mark.parametrize("fn", [pathwise.gronwall, jax.jit(pathwise.gronwall)])
def test_a_label_says_what_a_number_is(fn):
    name, kind, assumption = labels.label(fn)
    assert name == "gronwall"
    assert str(kind) == "a posteriori along the run"
    assert "gains_i" in assumption


@pytest.mark.parametrize("fn", [
    flows.log_concave_flow_bound, flows.mixture_flow_gain,
    certificates.enclose, certificates.sample_tube,
])  # fmt: skip
def test_what_holds_at_every_input_of_a_set_is_said_to_be_certified(fn):
    name, kind, assumption = labels.label(fn)
    assert (name, kind) == (fn.__name__, labels.Kind.CERTIFIED)
    assert any(words in assumption for words in ("every x", "mixture"))


def test_what_holds_for_the_laws_of_samples_is_said_to_be_distributional():
    assert labels.label(divergences.total_variation_bounds).kind == labels.Kind.DISTRIBUTIONAL


def test_a_function_without_label_is_no_bound():
    with pytest.raises(ValueError, match="decorate it"):
        labels.label(np.sum)


# Gains from logarithmic norms.


def dense(matrices):
    """mu and |A|_2 of each matrix."""
    symmetric = (matrices + np.swapaxes(matrices, -1, -2)) / 2
    return np.linalg.eigvalsh(symmetric)[..., -1], np.linalg.norm(matrices, 2, axis=(-2, -1))


def euler_gains(log_norms, norms, widths):
    """|I + h A|_2^2 <= 1 + 2 h mu(A) + h^2 |A|_2^2, the law of `log_norm_gains`."""
    return np.sqrt(np.maximum(1 + 2 * widths * log_norms + (widths * norms) ** 2, 0))


def test_euler_gains_bound_the_norm_of_every_step():
    rng = np.random.default_rng(1)
    a, h = rng.normal(size=(500, 4, 4)), rng.uniform(0.01, 2, size=500)
    exact = np.linalg.norm(np.eye(4) + h[:, None, None] * a, 2, axis=(1, 2))
    assert np.all(exact <= euler_gains(*dense(a), h) * (1 + 1e-12))


@pytest.mark.parametrize("decay", [-2.0, 0.0, 0.5])
def test_spirals_attain_the_euler_gain_and_break_the_bound_without_the_square(decay):
    """A = decay I + rotation: |I + h A|^2 = (1 + h decay)^2 + h^2."""
    a, h = decay * np.eye(2) + np.array([[0, -1.0], [1, 0]]), 0.3
    exact = np.linalg.norm(np.eye(2) + h * a, 2)
    assert_close(euler_gains(*dense(a), h), np.array(exact), factor=100)
    assert exact > 1 + h * decay


def test_the_bound_with_logarithmic_norms_holds_along_runs_and_is_attained_by_spirals():
    rng = np.random.default_rng(2)
    h, local = rng.uniform(0.05, 0.5, size=6), rng.normal(size=(6, 30, 3))
    a = rng.normal(size=(6, 30, 3, 3)) - 0.5 * np.eye(3)
    error = np.zeros((30, 3))
    mu, size = dense(a)
    bound = pathwise.gronwall(euler_gains(mu, size, h[:, None]), np.linalg.norm(local, axis=-1))
    for i in range(6):
        step = np.eye(3) + h[i] * a[i]
        error = np.einsum("bij,bj->bi", step, error) + local[i]
        assert np.all(np.linalg.norm(error, axis=1) <= np.asarray(bound[i + 1]) * (1 + 1e-12))
    spiral = -0.4 * np.eye(2) + np.array([[0, -1.0], [1, 0]])
    error, sizes = np.zeros(2), []
    for width in h:  # each local error along what has arrived
        moved = (np.eye(2) + width * spiral) @ error
        unit = moved / np.linalg.norm(moved) if moved.any() else np.array([1.0, 0.0])
        error = moved + 0.1 * unit
        sizes.append(np.linalg.norm(error))
    mu, size = dense(np.stack([spiral] * 6)[:, None])
    bound = pathwise.gronwall(euler_gains(mu, size, h[:, None]), np.full((6, 1), 0.1))
    assert_close(bound[1:, 0], np.array(sizes), factor=100)
