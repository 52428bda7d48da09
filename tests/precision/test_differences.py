"""Activations rounded as differences to what the call before had rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion, precision, quant
from qdiffjax.analysis.errors import ledger, runs, site_variances
from tests import worlds
from tests.precision.small import INT, STEPS, X_T, calibrated, denoiser
from tests.tolerances import assert_close


def test_errors_of_differences_do_not_add_up():
    """q_i - x_i is the rounding error of the last difference alone: half a step of its grid."""
    grid = quant.ActivationGrid(INT(4), difference=True)
    previous = jnp.zeros(5)
    x = worlds.normal(3, 5)
    for i in range(40):
        x = x + 0.01 * worlds.normal(i, 5)
        change = x - previous
        rounded, previous = grid.round_with_residual(x, previous, (0,))
        half = float(jnp.max(jnp.abs(change))) / 7 / 2
        assert float(jnp.max(jnp.abs(rounded - x))) <= half * (1 + 1e-6)
        assert_close(previous, rounded)
    assert float(jnp.max(jnp.abs(rounded - x))) < 0.01  # 4 bits of x itself have about 0.1


def test_the_derivative_of_a_difference_is_that_of_a_rounding():
    grid = quant.ActivationGrid(INT(4), difference=True)
    x, previous = worlds.normal(3, 5), worlds.normal(4, 5)
    fn = lambda x: grid.round_with_residual(x, previous, (0,))[0]  # noqa: E731
    assert_close(jax.jvp(fn, (x,), (jnp.ones(5),))[1], np.ones(5))
    assert_close(jax.vjp(fn, x)[1](jnp.ones(5))[0], np.ones(5))


def by_hand(q, num_steps):
    x, previous = X_T, jnp.zeros_like(X_T)
    grid = quant.ActivationGrid(INT(4, signed=False))
    for i in range(num_steps):
        previous = previous + grid.round(x - previous, (1, 2, 3))
        eps = denoiser().eps_fn(denoiser().params, previous, STEPS.t[i])
        x = STEPS.coeffs.x[i] * x + STEPS.coeffs.eps[i] * eps
    return x


def test_a_run_of_differences_is_the_recursion_and_its_ledger_adds_up():
    q = precision.quantize(calibrated(), "A4 difference", sites=("input",))
    run = diffusion.sample(precision.quantized_call(q), X_T, STEPS, per_call=q.calls(STEPS),
                           state=q.start(X_T))  # fmt: skip
    assert_close(run.x_0, by_hand(q, 5), factor=4096)
    xs = diffusion.sample(precision.full_call(q), X_T, STEPS).states
    assert_close(comparisons.measured(q, X_T, xs, STEPS).xs_hat[-1], run.x_0, factor=4096)
    entries = ledger.attribution(q, X_T, STEPS, num_nodes=4)
    np.testing.assert_allclose(entries.x_hat_0, run.x_0, atol=1e-5)


def test_differences_are_better_than_the_operand_on_a_fine_grid_of_steps():
    from qdiffjax import diffusion as d

    steps = d.ddim(denoiser().schedule, 40)
    errors = {}
    for words in ("A3", "A3 difference"):
        q = precision.quantize(calibrated(), words, sites=("input",))
        xs = diffusion.sample(precision.full_call(q), X_T, steps).states
        errors[words] = float(jnp.linalg.norm(comparisons.measured(q, X_T, xs, steps).errors[-1]))
    assert errors["A3 difference"] < 0.5 * errors["A3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [("A4 static difference", "dynamic scales"), ("W4 difference A8", "differences are of")],
)
def test_differences_that_make_no_sense_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        precision.quantize(calibrated(), words)


def test_a_forecast_from_the_operand_alone_refuses_differences():
    q = precision.quantize(calibrated(), "A4 difference", sites=("input",))
    probes = runs.signs(jax.random.key(0), 2, X_T)
    with pytest.raises(ValueError, match="rounded differences"):
        site_variances.activation_variances(q, X_T, STEPS, probes)
