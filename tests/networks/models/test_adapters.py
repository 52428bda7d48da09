"""Networks of other frameworks: the same function, its sites, and samples through it."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

from qdiffjax import diffusion
from qdiffjax.networks import from_equinox, from_linen, from_nnx
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


class LinenNet(nn.Module):
    """With running statistics and dropout, which `train` switches."""

    @nn.compact
    def __call__(self, x, t, train=False):
        h = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        h = nn.Dropout(0.5, deterministic=not train)(nn.Conv(3, (3, 3), name="conv")(h))
        return h + t / 1000


def linen_network():
    module = LinenNet()
    variables = module.init(jax.random.key(0), X, T)
    variables["batch_stats"]["norm"]["mean"] += 1  # or the collection would not matter
    return module, variables


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


@pytest.mark.slow
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


@pytest.mark.slow
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


# ------------------------------------------------------------------ linen


class State(train_state.TrainState):
    batch_stats: dict


def test_a_train_state_is_its_module_with_all_its_collections():
    module, variables = linen_network()
    expected = module.apply(variables, X, T)
    state = State.create(apply_fn=module.apply, tx=optax.sgd(0.1), **variables)
    for fn, params in (from_linen(module, variables), from_linen(state)):
        names = [site.name for site in list_sites(fn, params, X, T)]
        assert names == ["input", "conv/kernel", "output"]
        assert_close(quick_jit(fn)(params, X, T), expected, factor=64)
    doubled = jax.tree.map(lambda a: 2 * a, variables["params"])
    averaged = from_linen(state, {"params": doubled})[1]
    assert averaged["params"] is doubled
    assert averaged["batch_stats"] is state.batch_stats


def test_bare_parameters_are_the_collection_of_that_name():
    net = nn.Dense(3)
    variables = net.init(jax.random.key(0), X)
    one, other = (from_linen(net, v)[1] for v in (variables, variables["params"]))
    chex.assert_trees_all_equal(one, other, strict=True)


def test_keyword_arguments_reach_every_call():
    module, variables = linen_network()
    key = jax.random.key(5)
    fn, params = from_linen(module, variables, train=True, rngs={"dropout": key},
                            mutable=["batch_stats"])  # fmt: skip
    expected, _ = module.apply(variables, X, T, train=True, rngs={"dropout": key},
                               mutable=["batch_stats"])  # fmt: skip
    assert_close(quick_jit(fn)(params, X, T)[0], expected, factor=64)


@pytest.mark.parametrize(
    "kwargs", [{"train": True}, {"train": True, "mutable": ["batch_stats"]}],
    ids=["statistics", "dropout"],
)  # fmt: skip
def test_a_network_in_training_mode_is_told_what_to_switch_off(kwargs):
    fn, params = from_linen(*linen_network(), **kwargs)
    with pytest.raises(ValueError, match=r"deterministic=True.*train=False"):
        fn(params, X, T)


def test_a_module_without_variables_is_refused():
    with pytest.raises(ValueError, match="without variables"):
        from_linen(LinenNet())


# ------------------------------------------------------------------ what is no nnx.Param


class Table(nnx.Variable):
    """A weight of a kind of its own."""


def test_every_array_of_floats_is_a_parameter_whatever_its_kind():
    class Net(nnx.Module):
        def __init__(self):
            self.out = Table(normal32(1, 3, 3))
            self.count = nnx.Variable(jnp.int32(0))

        def __call__(self, x, t):
            return x @ self.out[...] + self.count[...]

    fn, params = from_nnx(Net())
    assert [site.name for site in list_sites(fn, params, X, T)] == ["input", "out", "output"]
    assert len(jax.tree.leaves(params)) == 1


def test_arrays_of_numpy_are_parameters_of_an_equinox_module_too():
    class Net(eqx.Module):
        out: np.ndarray

        def __call__(self, t, x):
            return x @ self.out * t

    weight = np.ones((3, 3), np.float32)
    fn, params = from_equinox(Net(weight), lambda module, x, t: module(t, x))
    assert [site.name for site in list_sites(fn, params, X, T)] == ["input", "out", "output"]
    assert_close(fn(params, X, T), X @ weight * T)


def test_named_conditions_of_each_sample_or_of_all_reach_an_equinox_module():
    class Net(eqx.Module):
        def __call__(self, x, t, *, label, shift):
            return x * t + label + shift

    fn, params = from_equinox(Net())
    label, shift = normal32(1, 3), jnp.float32(2)
    found = fn(params, X, T, label=label, shift=shift)
    assert_close(found, X * T + label[:, None, None, None] + shift)
