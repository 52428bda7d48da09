"""Certificates hold for every input and outcome tried, and are attained where that is possible."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.certificates import measure as parts
from qdiffjax import diffusion, precision
from qdiffjax.analysis import certificates
from qdiffjax.analysis.certificates import pairs
from qdiffjax.analysis.errors.runs import noises
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import ranges
from qdiffjax.sites import list_sites, rules, transform, with_values
from tests.worlds import normal

SLACK = 1e-12  # the runs themselves are computed in float64


def mlp(params, x, t):
    """A skip, a branch, two activations, time."""
    h = jnp.tanh(x @ params["in"] + t * params["bias"][None])
    h = h + jax.nn.silu(h @ params["mid"]) * 0.5
    return x - jnp.where(h > 0, h, 0.1 * h) @ params["out"]


MLP = {"in": normal(0, 2, 6), "bias": normal(1, 6), "mid": normal(2, 6, 6, scale=0.5),
       "out": normal(3, 6, 2, scale=0.4)}  # fmt: skip


def tiny(params, x, t):
    """A skip and one hidden layer."""
    return x + jnp.tanh(x @ params["in"] + t) @ params["out"]


TINY = {"in": normal(15, 2, 4), "out": normal(16, 4, 2, scale=0.4)}


def attention(params, x, t):
    """RMS norm, softmax attention with two products of activations; x [1, 3, 2]."""
    h = x @ params["embed"]
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 0.1)
    p = jax.nn.softmax(jnp.einsum("bid,bjd->bij", h @ params["q"], h) + t, axis=-1)
    return x + jnp.einsum("bij,bjd->bid", p, h) @ params["out"]


ATTENTION = {"embed": normal(4, 2, 4), "out": normal(8, 4, 2, scale=0.5)} | {
    "q": normal(5, 4, 4, scale=0.5)
}


def convolution(params, x, t):
    """Convolutions in a scan over layers, relu, average pooling; x [1, 4, 4, 1]."""

    def layer(h, kernel):
        y = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME",
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        return jax.nn.relu(y) + 0.5 * h, None

    h = jnp.concatenate([x, x * t], axis=-1)
    h, _ = jax.lax.scan(layer, h, params["kernels"])
    pooled = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x - h[..., :1] + pooled[..., 1:].mean() / 4


CONVOLUTION = {"kernels": normal(9, 2, 3, 3, 2, 2, scale=0.3)}
NETWORKS = {
    "tiny": (tiny, TINY, (1, 2)),
    "skips": (mlp, MLP, (1, 2)),
    "attention": (attention, ATTENTION, (1, 3, 2)),
    "convolutions in a scan": (convolution, CONVOLUTION, (1, 4, 4, 1)),
    "stored values": (with_values(attention), ATTENTION, (1, 3, 2)),
    "stored sums in a scan": (with_values(convolution), CONVOLUTION, (1, 4, 4, 1)),
}
T = jnp.float64(0.3)


def quantized(fn, params, shape, *, weight_bits=6, activation_bits=6, reach=1.0, key=None):
    x = normal(10, 64, *shape[1:], scale=reach)
    sites = list_sites(fn, params, x[:1], T)
    recipe = precision.uniform(sites, weight_bits=weight_bits, activation_bits=activation_bits)
    weights = precision.weight_operands(fn, params, x[:1], T)
    observe = jax.jit(transform(fn, rules.observe(ranges.range_of)))
    measured = precision.Calibration(Denoiser(fn, params), sites, weights, observe(params, x, T)[1])
    q = precision.quantize(measured, recipe)
    return q if key is None else parts.randomized(q, key)


@functools.cache
def runs(name):
    """error(q, x) and error_nudged(q, x, key) of one network, each compiled once."""
    fn, params, shape = NETWORKS[name]
    sites = list_sites(fn, params, jnp.zeros(shape), T)
    zeros, treedef = jax.tree.flatten(parts.no_nudges(sites, (1,)))
    plain = lambda x: fn(params, x, T)  # noqa: E731

    def by_rounding(q, x):
        return precision.quantized_call(q)(x, T, None)[0] - plain(x)

    def by_nudges(q, x, key):
        keys = jax.random.split(key, len(zeros))
        signs = [jax.random.rademacher(k, z.shape, z.dtype)
                 for k, z in zip(keys, zeros, strict=True)]  # fmt: skip
        return parts.nudged_call(q)(x, T, treedef.unflatten(signs))[0] - plain(x)

    batched = jax.jit(jax.vmap(by_rounding, (None, 0))), jax.jit(jax.vmap(by_nudges, (None, 0, 0)))
    return [lambda *args, g=g: np.asarray(g(*args)) for g in batched]


@functools.cache
def encloser(name):
    def both(q, low, high):
        pair = certificates.enclose(q, certificates.box(low, high), T)
        return (*certificates.bounds(pair.z), *certificates.bounds(pair.dz))

    compiled = jax.jit(both)
    return lambda *args: tuple(map(np.asarray, compiled(*args)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skips", "attention", "convolutions in a scan"])
def test_every_input_and_rounding_outcome_is_inside(name):
    fn, params, shape = NETWORKS[name]
    by_rounding, by_nudges = runs(name)
    rng = np.random.default_rng(0)
    q = quantized(fn, params, shape, weight_bits=10, activation_bits=10)
    for half in (0.01, 0.02):
        centre = rng.normal(size=shape)
        # Random inputs of the box, and its corners.
        part = rng.uniform(-1, 1, (300, *shape))
        part[100:] = np.sign(part[100:])
        x = jnp.asarray(centre + half * part)
        low, high, error_low, error_high = encloser(name)(q, centre - half, centre + half)
        values = np.asarray(jax.vmap(lambda v: fn(params, v, T))(x))
        assert np.all((low - SLACK <= values) & (values <= high + SLACK))
        keys = jax.random.split(jax.random.key(1), len(x))
        for errors in (by_rounding(q, x), by_nudges(q, x, keys)):
            assert np.all((error_low - SLACK <= errors) & (errors <= error_high + SLACK))
        assert np.all(np.isfinite(error_high - error_low))
        # A certificate that fits anything proves nothing.
        assert np.max(error_high - error_low) < 60 * np.max(np.abs(errors))


def test_stochastic_rounding_is_inside_a_certificate_of_twice_the_width():
    fn, params, shape = NETWORKS["tiny"]
    nearest = quantized(fn, params, shape, reach=4.0)
    by_rounding, _ = runs("tiny")
    x = normal(11, 200, *shape, scale=0.01)
    box = x.min(0), x.max(0)
    found = []
    for seed in range(8):
        q = parts.randomized(nearest, jax.random.key(seed))
        _, _, low, high = encloser("tiny")(q, *box)
        errors = by_rounding(q, x)
        assert np.all((low - SLACK <= errors) & (errors <= high + SLACK))
        found.append(np.max(np.abs(errors)))
    narrow = encloser("tiny")(nearest, *box)
    assert np.all(high - low > 1.5 * (narrow[3] - narrow[2]))
    assert max(found) > np.max(np.abs(narrow[3])) / 4


def linear(params, x, t):
    return x @ params["w"]


LINEAR = {"w": normal(12, 3, 2)}


def test_of_a_linear_network_the_certificate_is_attained_at_a_corner():
    q = quantized(linear, LINEAR, (1, 3), activation_bits=None)
    low, high = jnp.asarray([[-1.0, 0.5, -2.0]]), jnp.asarray([[0.0, 1.5, 3.0]])
    error = certificates.enclose(q, certificates.box(low, high), T).dz
    change = np.asarray(q.site_inputs["w"].weight - LINEAR["w"])
    centre, half = np.asarray(low + high)[0] / 2, np.asarray(high - low)[0] / 2
    for sign, bound in zip((-1, 1), certificates.bounds(error), strict=True):
        corner = centre @ change + sign * half @ np.abs(change)
        np.testing.assert_allclose(bound[0], corner, rtol=1e-12)
        assert np.all(sign * np.asarray(bound[0]) >= sign * corner - 1e-16)


def test_of_a_linear_network_the_rounding_part_is_the_worst_outcome():
    q = quantized(linear, LINEAR, (1, 3), weight_bits=None, activation_bits=4)
    x = jnp.asarray([[0.3, -0.2, 0.1]])
    error = certificates.enclose(q, certificates.box(x, x), T).dz
    # Q(x) twice (at `input` and at `w`), then Q(eps): |e| <= s / 2 each, in any combination.
    at_input, at_w, at_output = (q.site_inputs[n].activations[0].scale / 2
                                 for n in ("input", "w", "output"))  # fmt: skip
    worst = (at_input + at_w) * np.abs(np.asarray(LINEAR["w"])).sum(0) + at_output
    np.testing.assert_allclose(certificates.bounds(error)[1][0], worst, rtol=1e-12)
    np.testing.assert_allclose(certificates.bounds(error)[0][0], -worst, rtol=1e-12)


def test_errors_of_a_nonlinear_step_cancel_while_there_are_symbols_for_them():
    """Of tanh(x) - tanh(x) nothing is left if two symbols may be added to the two of x."""

    def twice(params, x, t):
        h = jnp.tanh(x @ params["w"])
        return h - h.reshape(-1).reshape(h.shape)

    q = quantized(twice, {"w": jnp.eye(2)}, (1, 2), activation_bits=None)
    box = certificates.box(-jnp.ones((1, 2)), jnp.ones((1, 2)))
    widths = {}
    for most in (4, 3, 0):
        z = certificates.enclose(q, box, T, max_symbols=most).z
        assert len(z) <= max(most, 2)
        low, high = certificates.bounds(z)
        widths[most] = float(np.max(high - low))
    assert widths[4] < 1e-9
    assert widths[3] == widths[0] > 0.1


def test_what_lies_beyond_the_grid_is_paid_in_full():
    q = quantized(linear, {"w": jnp.eye(3)}, (1, 3), weight_bits=None, activation_bits=4)
    grid = q.site_inputs["w"].activations[0]
    q = dataclasses.replace(q, site_inputs={"w": q.site_inputs["w"]})
    top = float(grid.scale) * (float(grid.format.qmax) - float(grid.zero_point))
    x = jnp.asarray([[top + 5.0, top - 1.0, 0.0]])
    low, high = certificates.bounds(certificates.enclose(q, certificates.box(x, x), T).dz)
    np.testing.assert_allclose(low[0], [-5.0, -grid.scale / 2, -grid.scale / 2], rtol=1e-12)
    np.testing.assert_allclose(high[0], 3 * [grid.scale / 2], rtol=1e-12)


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("is_random", [False, True])
def test_overload_is_paid_at_either_end_by_as_much_as_it_is(end, is_random):
    """Q(x) - x of x in [-3, 2] on the grid -2 ... 1 is up to 1 at the low end, -1 at the high."""
    low, high = (-2.0, 5.0) if end == "low" else (-5.0, 1.0)
    pair = pairs.Pair(certificates.box(jnp.array([-3.0]), jnp.array([2.0])))
    error = pairs.rounding_error(pair, 0.25, low, high, is_random=is_random)
    within = 0.25 if is_random else 0.125
    expected = (-within, 1.0) if end == "low" else (-1.0, within)
    np.testing.assert_allclose([float(e[0]) for e in certificates.bounds(error)], expected)


def test_smaller_boxes_give_smaller_certificates_that_meet_the_largest_error():
    fn, params, shape = NETWORKS["tiny"]
    q = quantized(fn, params, shape, activation_bits=None)
    by_rounding, _ = runs("tiny")
    x = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, (4000, *shape)))
    true = float(np.max(np.abs(by_rounding(q, x))))
    one = jax.jit(lambda low, high: jax.lax.map(lambda box: certificates.magnitude(
        certificates.enclose(q, certificates.box(*box), T).dz), (low, high)))  # fmt: skip
    ratios = []
    for num in (2, 8, 32):
        edges = np.linspace(-1, 1, num + 1)[:-1]
        low = np.stack(np.meshgrid(edges, edges), -1).reshape(-1, *shape)
        low = np.resize(low, (1024, *shape))  # one compilation
        ratios.append(float(one(low, low + 2 / num).max()) / true)
    assert ratios[0] > ratios[1] > ratios[2]
    assert 1 <= ratios[2] < 1.1


STEPS = diffusion.ddim(diffusion.linear(50), 5, eta=1.0)


def test_both_runs_of_a_stochastic_sampler_stay_in_the_tube():
    fn, params, shape = NETWORKS["tiny"]
    q = quantized(fn, params, shape, weight_bits=8, activation_bits=8, reach=2.0)
    key = jax.random.key(3)
    centre = normal(13, *shape)
    box = certificates.box(centre - 0.01, centre + 0.01)
    tube = jax.jit(lambda q, b: certificates.sample_tube(q, b, STEPS, key=key))(q, box)
    part = np.random.default_rng(6).uniform(-1, 1, (100, *shape))
    part[50:] = np.sign(part[50:])

    def both(x):
        full = diffusion.sample(precision.full_call(q), x, STEPS, key=key).xs
        return full, diffusion.sample(precision.quantized_call(q), x, STEPS, key=key).xs - full

    assert noises(key, STEPS, centre).shape == (5, *shape)  # the same for every x_T of the set
    states, errors = map(np.asarray, jax.jit(jax.vmap(both))(np.asarray(centre) + 0.01 * part))
    tube = certificates.Tube(*map(np.asarray, tube))
    assert np.all((tube.low - SLACK <= states) & (states <= tube.high + SLACK))
    assert np.all((tube.error_low - SLACK <= errors) & (errors <= tube.error_high + SLACK))
    assert np.all(np.isfinite(tube.error_high))


def test_of_an_affine_sampler_the_tube_is_attained():
    q = quantized(linear, {"w": normal(14, 2, 2, scale=0.4)}, (1, 2), activation_bits=None)
    steps = diffusion.ddim(diffusion.linear(50), 5)
    low, high = jnp.asarray([[-1.0, 0.5]]), jnp.asarray([[0.0, 1.5]])
    tube = certificates.sample_tube(q, certificates.box(low, high), steps)
    weights = np.asarray(q.params["w"]), np.asarray(q.site_inputs["w"].weight)
    full, hat = (
        functools.reduce(np.matmul, [x * np.eye(2) + eps * w for x, eps in zip(
            np.asarray(steps.coeffs.x), np.asarray(steps.coeffs.eps), strict=True)])
        for w in weights
    )  # fmt: skip
    centre, half = np.asarray(low + high)[0] / 2, np.asarray(high - low)[0] / 2
    for sign, bound in ((-1, tube.error_low), (1, tube.error_high)):
        corner = centre @ (hat - full) + sign * half @ np.abs(hat - full)
        np.testing.assert_allclose(bound[-1, 0], corner, rtol=1e-9)
    np.testing.assert_allclose(tube.high[-1, 0], centre @ full + half @ np.abs(full), rtol=1e-12)


def test_a_bound_that_blows_up_says_infinity():
    q = quantized(*NETWORKS["tiny"], weight_bits=3, activation_bits=3)
    for size in (1e200, 1e305, np.inf):
        low, high = encloser("tiny")(q, np.full((1, 2), -size), np.full((1, 2), size))[2:]
        assert np.all((low < -1e100) & (high > 1e100))
    assert np.all(np.isinf(high))


def test_a_primitive_without_a_rule_is_named_with_its_remedy():
    fn = lambda p, x, t: jnp.sort(x @ p["w"])  # noqa: E731
    q = precision.Quantized(Denoiser(fn, LINEAR), {})
    with pytest.raises(NotImplementedError, match=r"'sort'.*expected one of.*add a rule"):
        certificates.enclose(q, certificates.box(jnp.zeros((1, 3)), jnp.ones((1, 3))), T)
    fn = lambda p, x, t: jnp.round(x @ p["w"]).astype(jnp.int32).astype(x.dtype)  # noqa: E731
    with pytest.raises(NotImplementedError, match="'round'"):
        certificates.enclose(precision.Quantized(Denoiser(fn, LINEAR), {}),
                             certificates.box(jnp.zeros((1, 3)), jnp.ones((1, 3))), T)  # fmt: skip


def test_what_cannot_be_certified_is_refused():
    q = precision.Quantized(Denoiser(linear, LINEAR), {})
    x = certificates.box(jnp.zeros((1, 3)), jnp.ones((1, 3)))
    with pytest.raises(TypeError, match="quantize_site"):
        certificates.enclose(dataclasses.replace(q, rule=rules.perturb), x, T)
    with pytest.raises(ValueError, match="site_inputs: got 'v'"):
        certificates.enclose(dataclasses.replace(q, site_inputs={"v": precision.SiteQuant()}), x, T)
    with pytest.raises(TypeError, match=r"with memory.*ddim"):
        certificates.sample_tube(q, x, diffusion.dpmpp_2m(diffusion.linear(50), np.arange(5)[::-1]))
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="enable_x64"):
        certificates.enclose(q, x, T)
