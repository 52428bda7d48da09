"""Networks of other frameworks: the same function, its sites, and samples through it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qdiffjax import diffusion
from qdiffjax.networks.models.adapters import from_equinox, from_nnx
from qdiffjax.sites import list_sites, rules, transform
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit

X, T = normal32(0, 3, 4, 4, 3), jnp.float32(0.5)
STEPS = diffusion.ddim(diffusion.linear(), 3)


class NnxNet(nnx.Module):
    """A network with everything that is not a parameter: statistics, random state, a tied layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.tied = self.conv

    def __call__(self, x, t):
        return self.tied(self.drop(self.norm(self.conv(x)))) + t / 1000


class EqxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    out: eqx.nn.Linear
    table: jax.Array  # integers: no parameter

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=key, dtype=jnp.float32)
        self.out = eqx.nn.Linear(8, 3, key=key, dtype=jnp.float32)
        self.table = jnp.arange(3)

    def __call__(self, x, t):
        h = jax.nn.silu(self.conv(x.transpose(2, 0, 1)) + t / 1000).reshape(8, -1)
        return jax.vmap(self.out)(h.T).reshape(x.shape) * self.table.astype(x.dtype)


def nnx_network():
    module = NnxNet(nnx.Rngs(0))
    module.eval()
    return module, module, ["input", "conv/kernel", "conv/kernel#2", "output"]


def eqx_network():
    module = EqxNet(jax.random.key(0))

    def batched(x, t):
        return jnp.stack([module(a, t) for a in x])

    return module, batched, ["input", "conv/weight", "out/weight", "output"]


@pytest.fixture(autouse=True)
def _standard_promotion():
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


CASES = pytest.mark.parametrize(
    ("adapt", "network"), [(from_nnx, nnx_network), (from_equinox, eqx_network)],
    ids=["nnx", "equinox"],
)  # fmt: skip


@CASES
def test_the_function_is_the_module_and_its_sites_have_the_names_of_its_layers(adapt, network):
    module, batched, names = network()
    fn, params = adapt(module)
    sites = list_sites(fn, params, X, T)
    assert [site.name for site in sites] == names
    exact, plain = quick_jit(lambda p: (fn(p, X, T), transform(fn, rules.plain)(p, X, T)[0]))(
        params
    )
    assert_close(exact, batched(X, T), factor=64)
    assert_close(plain, exact)


@CASES
def test_sampling_through_it_is_the_samplers_recursion_on_the_module(adapt, network):
    module, batched, _ = network()
    fn, params = adapt(module)
    found = quick_jit(lambda p: diffusion.sample(diffusion.bind(fn, p), X, STEPS).x_0)(params)
    x = X
    for i in range(3):
        t, c = jax.tree.map(lambda a, i=i: jnp.float32(a[i]), (STEPS.t, STEPS.coeffs))
        x = c.x * x + c.eps * batched(x, t)
    assert_close(found, x, factor=256)


def test_a_random_module_is_a_pure_function_that_leaves_the_module_alone():
    module = NnxNet(nnx.Rngs(0))
    state = nnx.state(module, nnx.Not(nnx.RngKey))
    before = [np.array(a) for a in jax.tree.leaves(state)]
    fn, params = from_nnx(module)
    run = quick_jit(fn)
    np.testing.assert_array_equal(run(params, X, T), run(params, X, T))
    for a, b in zip(jax.tree.leaves(state), before, strict=True):
        np.testing.assert_array_equal(a, b)
    module(X, T)  # the module's own state moves on
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(state), before, strict=True))


def test_parameters_are_differentiable_and_integers_are_not_among_them():
    fn, params = from_equinox(EqxNet(jax.random.key(0)))
    grads = jax.eval_shape(jax.grad(lambda p: fn(p, X, T).sum()), params)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    assert len(jax.tree.leaves(params)) == 4


def test_each_sample_of_an_equinox_network_may_have_its_own_time():
    fn, params = from_equinox(EqxNet(jax.random.key(0)))
    times = jnp.asarray([1.0, 500.0, 900.0], jnp.float32)
    both = quick_jit(fn)(params, X, times)
    for i in range(3):
        assert_close(both[i], EqxNet(jax.random.key(0))(X[i], times[i]), factor=64)
