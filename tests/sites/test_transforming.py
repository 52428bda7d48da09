"""Transformed functions compose with jit, vmap, autodiff and the sampler."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.quant import ActivationGrid, IntFormat
from qdiffjax.sites import list_sites, rules, transform
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close
from tests.worlds import normal


def dense_fn(params, x, t):
    return jnp.tanh(x @ params["a"] + t) @ params["b"]


PARAMS = {"a": normal(1, 4, 8), "b": normal(2, 8, 4)}
X, T = normal(3, 5, 4), jnp.float64(0.2)


def grid_inputs(bits, span=3.0):
    """Both activations of `dense_fn` on the grid -span .. span of this width."""
    how = by_hand.how(by_hand.affine(-span, span, bits))
    return {name: precision.SiteQuant(None, (how,)) for name in PARAMS}


def dense_by_hand(x, t, *grids):
    x = by_hand.on_grid(x, *grids[0])
    h = by_hand.on_grid(np.tanh(x @ np.asarray(PARAMS["a"]) + t), *grids[1])
    return h @ np.asarray(PARAMS["b"])


def test_widths_and_scales_are_data_one_compilation_serves_all():
    g = transform(dense_fn, precision.quantize_site)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(site_inputs):
        return g(PARAMS, X, T, site_inputs=site_inputs)[0]

    for bits, span in [(2, 3.0), (4, 3.0), (8, 1.5)]:
        grid = by_hand.affine(-span, span, bits)
        assert_close(run(grid_inputs(bits, span)), dense_by_hand(X, 0.2, grid, grid), factor=64)


def test_a_quantized_denoiser_is_a_pytree_that_compiles_once_for_all_widths():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(q, x):
        return precision.quantized_call(q)(x, T, None)[0], precision.full_call(q)(x, T, None)[0]

    for bits in (3, 5):
        low, full = run(precision.Quantized(Denoiser(dense_fn, PARAMS), grid_inputs(bits)), X)
        grid = by_hand.affine(-3.0, 3.0, bits)
        assert_close(low, dense_by_hand(X, 0.2, grid, grid), factor=64)
        assert_close(full, jax.jit(dense_fn)(PARAMS, X, T), factor=64)


def test_vmap_over_a_stack_of_site_inputs_runs_each_recipe():
    g = transform(dense_fn, precision.quantize_site)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(grid_inputs, (2, 4, 8)))
    got = jax.jit(jax.vmap(lambda i: g(PARAMS, X, T, site_inputs=i)[0]))(stack)
    for y, bits in zip(got, (2, 4, 8), strict=True):
        grid = by_hand.affine(-3.0, 3.0, bits)
        assert_close(y, dense_by_hand(X, 0.2, grid, grid), factor=64)


def test_vmap_over_x_gives_each_example_its_own_result():
    g = transform(dense_fn, precision.quantize_site)

    def single(x):
        return g(PARAMS, x[None], T, site_inputs=grid_inputs(4))[0][0]

    expected = g(PARAMS, X, T, site_inputs=grid_inputs(4))[0]
    assert_close(jax.jit(jax.vmap(single))(X), expected, factor=64)


def straight_through(x, t):
    """Tangent map of the quantized `dense_fn`: masks of the window replace both roundings."""
    grid = by_hand.affine(-1.0, 1.0, 4)
    scale, zero, qmin, qmax = grid

    def inside(v):
        return (v / scale >= qmin - zero) & (v / scale <= qmax - zero)

    a, b = np.asarray(PARAMS["a"]), np.asarray(PARAMS["b"])
    h = np.tanh(by_hand.on_grid(x, *grid) @ a + t)
    return lambda dx: ((((dx * inside(x)) @ a) * (1 - h**2)) * inside(h)) @ b


def test_derivatives_of_a_quantized_function_are_straight_through():
    g = transform(dense_fn, precision.quantize_site)
    inputs, dx, u = grid_inputs(4, 1.0), normal(7, 5, 4), normal(8, 5, 4)
    run = jax.jit(lambda x: g(PARAMS, x, T, site_inputs=inputs)[0])
    expected = straight_through(np.asarray(X), 0.2)(np.asarray(dx))
    _, tangent = jax.jvp(run, (X,), (dx,))
    assert_close(tangent, expected, factor=64)
    (cotangent,) = jax.vjp(run, X)[1](u)
    assert_close(jnp.vdot(cotangent, dx), np.vdot(u, expected), factor=64)


def test_gradients_reach_scales_and_weights_given_as_site_inputs():
    g = transform(lambda p, x, t: x @ p, precision.quantize_site)
    w, one = normal(1, 4, 3), jnp.float64(1)

    def loss(w_hat, scale):
        how = ActivationGrid(IntFormat(jnp.int32(5)), scale)
        return jnp.sum(g(w, X, T, site_inputs={"params": precision.SiteQuant(w_hat, (how,))})[0])

    dw, dscale = jax.jit(jax.grad(loss, (0, 1)))(w, 0.5 * one)
    x = np.asarray(X)
    rounded = 0.5 * np.round(x / 0.5)
    assert_close(dw, np.broadcast_to(rounded.sum(0)[:, None], (4, 3)), factor=64)
    # LSQ: d x_hat / d scale = round(v) - v inside the window.
    assert_close(dscale, np.sum((np.round(x / 0.5) - x / 0.5) @ np.asarray(w)), factor=64)


def test_gradients_pass_through_checkpoint_and_scan_under_a_rule():
    net = worlds.linen_layers()
    g = transform(net.fn, rules.perturb)

    def loss(fn):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(fn(p, x) ** 2), (0, 1)))(net.params, net.x)

    actual = loss(lambda p, x: g(p, x, net.t)[0])
    expected = loss(lambda p, x: net.fn(p, x, net.t))
    jax.tree.map(lambda a, b: assert_close(a, b, factor=64), actual, expected)


STEPS = diffusion.ddim(diffusion.linear(100), 3)


def sample_by_hand(eps_fn):
    x = np.asarray(X)
    for i in range(3):
        x = float(STEPS.coeffs.x[i]) * x + float(STEPS.coeffs.eps[i]) * eps_fn(i, x)
    return x


def test_what_varies_by_step_arrives_through_the_sampler_as_per_call():
    grids = [by_hand.affine(-2.0 - i, 2.0 + i, bits) for i, bits in enumerate((8, 2, 4))]
    fixed = by_hand.affine(-1.0, 1.0, 6)
    base = {"b": precision.SiteQuant(None, (by_hand.how(fixed),))}
    hows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(by_hand.how, grids))
    q = precision.Quantized(Denoiser(dense_fn, PARAMS), base)
    run = diffusion.sample(
        precision.quantized_call(q), X, STEPS, per_call={"a": precision.SiteQuant(None, (hows,))}
    )
    times = np.asarray(STEPS.t)
    expected = sample_by_hand(lambda i, x: dense_by_hand(x, times[i], grids[i], fixed))
    assert_close(run.x_0, expected, factor=64)


def test_gates_by_step_open_the_rule_where_they_say():
    grid = by_hand.affine(-3.0, 3.0, 3)
    on = {"a": jnp.asarray([True, False, False]), "b": jnp.asarray([False, True, False])}
    q = precision.Quantized(Denoiser(dense_fn, PARAMS), grid_inputs(3))
    run = diffusion.sample(precision.gated_call(q), X, STEPS, per_call=on)
    exact = (1e-12, 0.0, -1e15, 1e15)  # a grid so fine that it is none
    expected = sample_by_hand(
        lambda i, x: dense_by_hand(
            x, float(STEPS.t[i]), grid if i == 0 else exact, grid if i == 1 else exact
        )
    )
    np.testing.assert_allclose(run.x_0, expected, rtol=0, atol=1e-9)


def test_an_energy_gradient_can_be_a_denoiser():
    def energy_fn(p, x, t):
        return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ p) ** 2) * t)(x)

    w = normal(1, 4, 3)
    listed = list_sites(energy_fn, w, X, T)
    assert [s.name for s in listed] == ["input", "params", "params#2", "output"]
    got, _ = jax.jit(transform(energy_fn, rules.plain))(w, X, T)
    h = np.tanh(np.asarray(X) @ np.asarray(w))
    assert_close(got, (2 * 0.2 * h * (1 - h**2)) @ np.asarray(w).T, factor=64)


def test_an_unknown_site_is_refused_and_the_nearest_named():
    g = transform(dense_fn, precision.quantize_site)
    with pytest.raises(ValueError, match=r"site_inputs: got 'inptu'.*perhaps input"):
        g(PARAMS, X, T, site_inputs={"inptu": precision.SiteQuant()})


def test_a_scanned_site_named_without_its_iteration_is_refused():
    net = worlds.layers()
    g = transform(net.fn, precision.quantize_site)
    with pytest.raises(ValueError, match=r"site_inputs: got 'layers/kernel'.*layers/kernel\[0\]"):
        g(*net.args, site_inputs={"layers/kernel": precision.SiteQuant()})


def test_a_scan_wants_inputs_for_all_its_iterations():
    net = worlds.layers()
    g = transform(net.fn, rules.perturb)
    with pytest.raises(
        ValueError, match=r"got 2 of layers/kernel, expected all 3 iterations.*neutral"
    ):
        g(*net.args, site_inputs={f"layers/kernel[{i}]": jnp.zeros((2, 4)) for i in (0, 2)})


@pytest.mark.parametrize("args", [(PARAMS,), (PARAMS, {"x": X, "y": X}, T), (PARAMS, None, T)])
def test_a_function_of_another_signature_is_refused_with_a_remedy(args):
    with pytest.raises(TypeError, match=r"\(params, x, \.\.\.\).*wrap your function"):
        list_sites(lambda *a: X, *args)
