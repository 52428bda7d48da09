"""The kernel of every convolution is moved into one layout, whoever made the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import _compat, compiling
from qdiffjax.compiling import canonical_convolutions
from tests.tolerances import assert_close

KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 4, 4), jnp.float64) / 6
X = jax.random.normal(jax.random.key(1), (2, 6, 6, 4), jnp.float64)


def conv(x, kernel=KERNEL, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def kernel_layouts(fn, *args) -> list:
    """Kernel layout of every convolution that `fn` runs, in loops and branches too."""
    found = []

    def look(jaxpr):
        for eqn in _compat.open_jaxpr(jaxpr)[0].eqns:
            if eqn.primitive.name == "conv_general_dilated":
                found.append(eqn.params["dimension_numbers"].rhs_spec)
            for body in _compat.sub_jaxprs(eqn):
                look(body)

    look(jax.make_jaxpr(fn)(*args))
    return found


def input_vjp(x, **kwargs):
    y, vjp = jax.vjp(lambda x: conv(x, **kwargs), x)
    return vjp(jnp.sin(y))[0]


def in_scan(x):
    return jax.lax.scan(lambda c, _: (input_vjp(c), None), x, None, length=3)[0]


def in_while(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, input_vjp(c[1])), (0, x))[1]


def in_cond(x):
    return jax.lax.cond(x[0, 0, 0, 0] > 0, input_vjp, lambda x: 2 * x, x)


def in_nested(x):
    return jax.jit(jax.checkpoint(lambda x: jax.lax.map(input_vjp, x[None])[0]))(x)


CASES = {
    "plain": input_vjp, "scan": in_scan, "while": in_while, "cond": in_cond, "nested": in_nested,
    "stride": lambda x: input_vjp(x, stride=2),
    "groups": lambda x: input_vjp(x, kernel=KERNEL[:, :, :2], groups=2),
    "kernel gradient": lambda x: jax.grad(lambda k: jnp.sum(jnp.sin(conv(x, k))))(KERNEL),
    "kernel first": lambda x: jax.lax.conv(jnp.moveaxis(x, 3, 1), KERNEL.T, (1, 1), "SAME"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_function_is_the_same_with_every_kernel_in_one_layout(name):
    fn = CASES[name]
    assert any(spec != (3, 2, 0, 1) for spec in kernel_layouts(fn, X))
    canonical = canonical_convolutions(fn)
    assert set(kernel_layouts(canonical, X)) == {(3, 2, 0, 1)}
    assert_close(jax.jit(canonical)(X), jax.jit(fn)(X), factor=64)


@pytest.mark.slow
def test_the_result_can_be_differentiated_in_both_modes_and_vmapped():
    fn, canonical = in_scan, canonical_convolutions(in_scan)
    v = jnp.ones_like(X)
    assert_close(jax.jvp(canonical, (X,), (v,))[1], jax.jvp(fn, (X,), (v,))[1], factor=256)
    assert_close(jax.vjp(canonical, X)[1](v)[0], jax.vjp(fn, X)[1](v)[0], factor=256)
    xs = jnp.stack([X, -X])
    assert_close(jax.vmap(canonical)(xs), jax.vmap(fn)(xs), factor=64)


@pytest.mark.slow
def test_a_function_without_such_convolutions_keeps_its_bits_and_its_tree():
    @jax.custom_jvp
    def odd(x):
        return x**3

    odd.defjvp(lambda p, t: (odd(*p), 7 * t[0]))

    def fn(tree):
        return {"y": odd(conv(tree["x"])), "n": tree["n"]}

    tree = {"x": X, "n": jnp.arange(3)}
    found = jax.jit(canonical_convolutions(fn))(tree)
    np.testing.assert_array_equal(found["y"], jax.jit(fn)(tree)["y"])
    # A function's own derivative rule survives.
    slope = jax.jvp(lambda x: canonical_convolutions(fn)({"x": x, "n": 0})["y"], (X,), (X,))[1]
    assert_close(slope, 7 * conv(X), factor=64)


def test_programs_are_forgotten_where_there_are_too_many():
    fn = jax.jit(lambda x: jnp.sin(x) + 1)
    fn(X)
    assert not compiling.forget_programs()  # no test has so many
    assert fn._cache_size() == 1
    assert compiling.forget_programs(0) == compiling.MAPPINGS.exists()
    assert fn._cache_size() == (0 if compiling.MAPPINGS.exists() else 1)
    assert_close(fn(X), jnp.sin(X) + 1)


def test_where_the_system_does_not_tell_nothing_is_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "MAPPINGS", tmp_path / "none")
    assert not compiling.forget_programs(0)
