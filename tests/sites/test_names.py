"""Names of sites: in scans, under transformations, and by glob."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.sites import list_sites, match, transform
from tests import worlds
from tests.worlds import normal

X, T = normal(1, 3, 4), jnp.float64(0.3)


def names(fn, *args):
    """Names of the sites between the edges."""
    return [s.name for s in list_sites(fn, *args)][1:-1]


def test_a_scan_over_layers_is_one_site_per_iteration():
    net = worlds.layers()
    listed = list_sites(net.fn, *net.args)[1:-1]
    expected = ["layers/kernel[0]", "layers/kernel[1]", "layers/kernel[2]", "out/kernel"]
    assert [s.name for s in listed] == expected
    assert [s.macs for s in listed] == [2 * 4 * 4] * 4
    assert [s.parameters for s in listed] == [16] * 4
    net = worlds.linen_layers()  # nn.scan over nn.remat
    expected = [f"layers/dense/kernel[{i}]" for i in range(3)] + ["out/kernel"]
    assert names(net.fn, *net.args) == expected


def test_nested_scans_are_numbered_outermost_first():
    def fn(p, x, t):
        def outer(h, w):
            h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, length=2)
            return h @ w, None

        return jax.lax.scan(outer, x, p["w"])[0]

    expected = [f"w[{i}][{j}]" for i in range(3) for j in range(2)]
    expected += [f"w#2[{i}]" for i in range(3)]
    assert names(fn, {"w": normal(1, 3, 4, 4)}, X, T) == expected


def test_a_product_of_activations_in_a_scan_is_named_once():
    def layer(h, w):
        return jnp.tanh((h @ w["q"]) @ (h @ w["k"]).T @ h), None

    def fn(p, x, t):
        return jax.lax.scan(layer, x, p["layers"])[0]

    params = {"layers": {"q": normal(1, 2, 4, 4), "k": normal(2, 2, 4, 4)}}
    found = names(fn, params, X, T)
    assert len(found) == len(set(found)) == 8
    # The scores see q and k alone; the second product also the input, which has no folder.
    assert {n.split("[")[0] for n in found} == {"layers/q", "layers/k", "layers/dot_0", "dot_0"}


def record(seen):
    def rule(site, op, operands, inputs):
        seen.append(site.name)
        return op(*operands), None

    return rule


def test_names_are_stable_under_jit_vmap_grad_and_checkpoint():
    net = worlds.handwritten()
    expected = [s.name for s in list_sites(net.fn, *net.args)]
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), net.args)
    assert [s.name for s in list_sites(net.fn, *shaped)] == expected

    def single(p, x, t):
        return net.fn(p, x[None], t)[0]

    for fn in (jax.jit(net.fn), jax.checkpoint(net.fn), jax.vmap(single, (None, 0, None))):
        assert [s.name for s in list_sites(fn, *net.args)] == expected

    def under(apply, *args):
        seen: list[str] = []
        g = transform(net.fn, record(seen))
        jax.eval_shape(lambda p, x, t: apply(lambda *a: g(*a)[0])(p, x, t), *args)
        return set(seen)

    p, x, t = net.args
    assert under(lambda g: g, p, x, t) == set(expected)
    assert under(jax.jit, p, x, t) == set(expected)
    assert under(lambda g: jax.grad(lambda *a: jnp.sum(g(*a))), p, x, t) == set(expected)
    assert under(jax.checkpoint, p, x, t) == set(expected)
    assert under(lambda g: jax.vmap(g, (None, 0, None)), p, jnp.stack([x, x]), t) == set(expected)


def test_match_takes_globs_in_order_and_an_exclamation_mark_takes_away():
    net = worlds.layers()
    listed = list_sites(net.fn, *net.args)
    assert match(listed, ["layers/*"]) == tuple(f"layers/kernel[{i}]" for i in range(3))
    assert match(listed, ["layers/kernel[1]"]) == ("layers/kernel[1]",)
    chosen = match(listed, ["*", "!input", "!layers/*", "layers/kernel[2]"])
    assert chosen == ("layers/kernel[2]", "out/kernel", "output")


def test_an_unknown_glob_names_the_nearest_sites():
    net = worlds.handwritten()
    listed = list_sites(net.fn, *net.args)
    with pytest.raises(
        ValueError, match=r"got 'attn/querry/\*', which no site matches.*attn/query/kernel"
    ):
        match(listed, ["*", "attn/querry/*"])


class Box(eqx.Module):
    """A variable of nnx as its state shows it: an attribute called value."""

    value: jax.Array


class Attention(eqx.Module):
    """Projections that are fields themselves."""

    query: jax.Array
    value: jax.Array


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda q, v: {"attn": {"query": q, "value": v}}, ["attn/query", "attn/value"]),
        (lambda q, v: {"params": {"attn": {"query": q, "value": v}}}, ["attn/query", "attn/value"]),
        (lambda q, v: {"attn": Attention(q, v)}, ["attn/query", "attn/value"]),
        (lambda q, v: {"attn": {"query": Box(q), "value": Box(v)}}, ["attn/query", "attn/value"]),
        (lambda q, v: {"mix": {"value": v}, "query": q}, ["mix/value", "query"]),
        # a state that was saved and restored as dictionaries: every parameter in its box
        (lambda q, v: {"query": {"value": q}, "value": {"value": v}}, ["query", "value"]),
        (lambda q, v: {"a": {"params": q}, "params": v}, ["a/params", "params"]),
        # two parameters never share a name
        (lambda q, v: {"a": q, "params": {"a": v}}, ["a", "params/a"]),
        (lambda q, v: {"a/b": q, "a": {"b": v}}, ["['a']['b']", "['a/b']"]),
    ],
)
def test_a_value_projection_is_named_by_its_own_path_and_names_differ(make, expected):
    params = make(normal(2, 4, 4), normal(3, 4, 4))

    def fn(p, x, t):
        return jnp.tanh(x @ jax.tree.leaves(p)[0]) @ jax.tree.leaves(p)[1]

    assert sorted(names(fn, params, X, T)) == expected
    assert len({s.weight_path for s in list_sites(fn, params, X, T)[1:-1]}) == 2


@pytest.mark.parametrize("order", [("a", "a", "a#2", "a"), ("a#2", "a", "a"), ("a#2", "a#2", "a")])
def test_a_parameter_that_is_called_like_a_second_use_has_a_name_of_its_own(order):
    def fn(p, x, t):
        for name in order:
            x = x @ p[name]
        return x

    found = names(fn, {"a": normal(2, 4, 4), "a#2": normal(3, 4, 4)}, X, T)
    assert len(set(found)) == len(order)
    assert found[0] == order[0]


def test_a_glob_of_an_attention_takes_its_value_projection():
    params = {"attn": {n: normal(2, 4, 4) for n in ("query", "key", "value", "out")}}

    def fn(p, x, t):
        a = p["attn"]
        weights = jax.nn.softmax((x @ a["query"]) @ (x @ a["key"]).T)
        return weights @ (x @ a["value"]) @ a["out"]

    chosen = match(list_sites(fn, params, X, T), ["attn/*"])
    assert {n for n in chosen if "dot" not in n} == {f"attn/{n}" for n in params["attn"]}


def test_names_do_not_depend_on_values():
    net = worlds.layers()
    zeros = jax.tree.map(np.zeros_like, net.args)
    assert list_sites(net.fn, *zeros) == list_sites(net.fn, *net.args)
