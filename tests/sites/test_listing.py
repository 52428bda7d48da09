"""Names, shapes and costs of sites, worked out by hand."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from qdiffjax import precision
from qdiffjax.sites import list_sites, site
from tests import worlds
from tests.worlds import normal

X, T = normal(1, 3, 4), jnp.float64(0.3)
A, B = normal(2, 4, 4), normal(3, 4, 5)


def names(fn, *args):
    """Names of the sites between the edges."""
    listed = [s.name for s in list_sites(fn, *args)]
    assert listed[0] == "input"
    assert listed[-1] == "output"
    return listed[1:-1]


def by_name(fn, *args):
    return {s.name: s for s in list_sites(fn, *args)}


def block(level, *parts):
    return [f"{level}_block_{part}/kernel" for part in parts]


def test_a_linen_unet_lists_its_kernels_and_attention_products_in_order():
    net = worlds.linen_unet()
    three = ("0/conv_1", "0/time", "0/conv_2")
    attention = [f"mid_attn_0/{part}/kernel" for part in ("query", "key", "value")]
    attention += ["mid_attn_0/dot_0", "mid_attn_0/dot_1", "mid_attn_0/out/kernel"]
    expected = ["time_1/kernel", "time_2/kernel", "conv_in/kernel", *block("down_0", *three)]
    expected += ["down_0_pool/kernel", *block("down_1", *three, "0/skip")]
    expected += [*block("mid", *three), *attention]
    second = ("1/conv_1", "1/time", "1/conv_2", "1/skip")
    expected += [*block("up_1", *three, "0/skip", *second), "up_1_pool/kernel"]
    expected += [*block("up_0", *three, "0/skip", *second), "conv_out/kernel"]
    assert names(net.fn, *net.args) == expected


def test_an_nnx_network_drops_value_from_its_paths():
    net = worlds.nnx_net()
    attn = [f"attn/{part}/kernel" for part in ("query", "key", "value", "out")]
    attn += ["attn/dot_0", "attn/dot_1"]
    assert sorted(names(net.fn, *net.args)) == sorted(
        ["conv/kernel", "time/kernel", *attn, "out/kernel"]
    )


def test_an_equinox_network_is_named_by_its_fields():
    net = worlds.eqx_net()
    attn = [f"attn/{part}" for part in
            ("query_proj/weight", "key_proj/weight", "value_proj/weight", "dot_0", "dot_1",
             "output_proj/weight")]  # fmt: skip
    time = ["time/layers/0/weight", "time/layers/1/weight"]
    assert sorted(names(net.fn, *net.args)) == sorted(["conv/weight", *time, *attn, "out/weight"])
    site = by_name(net.fn, *net.args)["out/weight"]
    assert (site.weight, site.shapes[0], site.parameters) == (0, (3, 8), 24)  # on the left side


def test_costs_and_shapes_of_the_handwritten_network_are_those_of_algebra():
    net = worlds.handwritten()
    listed = by_name(net.fn, *net.args)
    # x [2, 3, 3, 2], 9 tokens of 6 channels, 2 images.
    macs = {
        "conv/kernel": 2 * 9 * 6 * (3 * 3 * 2),
        "attn/query/kernel": 2 * 9 * 6 * 6,
        "attn/key/kernel": 2 * 9 * 6 * 6,
        "attn/value/kernel": 2 * 9 * 6 * 6,
        "attn/dot_0": 2 * 9 * 9 * 6,
        "attn/dot_1": 2 * 9 * 6 * 9,
        "out/kernel": 2 * 9 * 2 * 6,
        "input": 0,
        "output": 0,
    }
    assert {name: s.macs for name, s in listed.items()} == macs
    parameters = {name: s.parameters for name, s in listed.items() if s.parameters}
    assert parameters == {
        "conv/kernel": 108, "attn/query/kernel": 36, "attn/key/kernel": 36,
        "attn/value/kernel": 36, "out/kernel": 12,
    }  # fmt: skip
    conv, dense, product = (listed[n] for n in ("conv/kernel", "out/kernel", "attn/dot_0"))
    assert (conv.kind, conv.weight, conv.activations) == ("conv", 1, (0,))
    assert conv.shapes == ((2, 3, 3, 2), (3, 3, 2, 6))
    assert conv.out_shape == (2, 3, 3, 6)
    assert conv.contract_axes[1] == (0, 1, 2)  # all but the output channels
    assert (dense.kind, dense.weight, dense.contract_axes) == ("dot", 1, ((2,), (0,)))
    assert (product.kind, product.weight, product.activations) == ("dot", None, (0, 1))
    assert (product.weight_path, product.parameters) == (None, 0)
    assert (listed["input"].kind, listed["output"].kind) == ("input", "output")
    assert listed["output"].shapes == (net.x.shape,)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_costs_one_group_of_input_channels_per_output(groups):
    x, kernel = jnp.zeros((2, 5, 5, 4)), jnp.zeros((3, 3, 4 // groups, 8))
    listed = by_name(lambda p, x, t: worlds.convolve(x, p, groups), kernel, x, T)
    # Every output pixel of every channel sees 3 x 3 taps of its own 4 / groups channels.
    assert listed["params"].macs == 2 * 5 * 5 * 8 * 9 * (4 // groups)
    assert precision.output_channels(listed["params"]) == (1, 1, 1, 8)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (4, 2), (3, 2), (4, 1), (3, 3), (6, 3)])
def test_a_transposed_convolution_costs_its_inputs_times_its_taps(taps, stride, padding):
    def fn(p, x, t):
        return jax.lax.conv_transpose(x, p, (stride, stride), padding)

    listed = by_name(fn, jnp.zeros((taps, taps, 3, 8)), jnp.zeros((2, 6, 5, 3)), T)
    # As a scattering: no zero that it inserts between the elements is multiplied.
    assert listed["params"].macs == 2 * (6 * taps) * (5 * taps) * 3 * 8


def test_the_zeros_that_a_padded_transposed_convolution_meets_are_where_the_padding_puts_them():
    """4 elements at 1, 3, 5, 7 of 9 places, 3 taps: the outer two miss one result each."""

    def fn(p, x, t):
        return jax.lax.conv_general_dilated(
            x, p, (1,), [(1, 1)], lhs_dilation=(2,), dimension_numbers=("NHC", "HIO", "NHC")
        )

    listed = by_name(fn, jnp.zeros((3, 3, 8)), jnp.zeros((2, 4, 3)), T)
    assert listed["params"].macs == 2 * (2 + 3 + 3 + 2) * 3 * 8


def test_a_tap_meets_the_element_that_lies_ahead_of_its_place():
    """3 elements at 1, 4, 7 of 8 places, 2 taps: two results meet each but the last, which one."""

    def fn(p, x, t):
        return jax.lax.conv_general_dilated(
            x, p, (1,), [(1, 0)], lhs_dilation=(3,), dimension_numbers=("NHC", "HIO", "NHC")
        )

    listed = by_name(fn, jnp.zeros((2, 3, 8)), jnp.zeros((2, 3, 3)), T)
    assert listed["params"].macs == 2 * (2 + 2 + 1) * 3 * 8


def test_a_batched_einsum_counts_each_batch_once_and_keeps_its_batch_axes():
    w = jnp.zeros((7, 3, 5))

    def fn(p, x, t):
        return jnp.einsum("hbi,hio->hbo", x, p["w"])

    site = by_name(fn, {"w": w}, jnp.zeros((7, 2, 3)), T)["w"]
    assert (site.macs, site.parameters) == (7 * 2 * 3 * 5, 105)
    assert precision.output_channels(site) == (7, 1, 5)
    assert precision.whole_tensor(site) == (1, 1, 1)


def test_the_second_use_of_a_weight_is_numbered_and_remembers_its_path():
    def fn(p, x, t):
        return x @ p["a"] @ p["a"].T @ p["a"]

    listed = list_sites(fn, {"a": A}, X, T)[1:-1]
    assert [s.name for s in listed] == ["a", "a#2", "a#3"]
    assert {s.weight_path for s in listed} == {"a"}


@pytest.mark.parametrize(
    ("weight_fn", "name"),
    [
        (lambda p: p["a"].T, "a"),
        (lambda p: p["a"].reshape(2, 8).reshape(4, 4), "a"),
        (lambda p: p["a"].astype(jnp.float32).astype(jnp.float64), "a"),
        (lambda p: p["small"][:, None] * p["a"] + 1.0, "a"),
        (lambda p: p["small"][:, None] * p["small"][None], "small"),
        (lambda p: jax.jit(lambda a: jnp.tanh(a))(p["a"]), "a"),
        (lambda p: p["z"] @ p["a"], "a"),  # a product of weights is a weight; ties go by name
    ],
)
def test_what_depends_on_parameters_alone_is_a_weight_named_by_its_largest_leaf(weight_fn, name):
    params = {"a": A, "small": normal(4, 4), "z": A + 1}
    listed = list_sites(lambda p, x, t: x @ weight_fn(p), params, X, T)[1:-1]
    assert [(s.name, s.weight) for s in listed] == [(name, 1)]
    listed = list_sites(lambda p, x, t: (weight_fn(p) @ x.T).T, params, X, T)[1:-1]
    assert [(s.name, s.weight) for s in listed] == [(name, 0)]


def test_a_call_that_mixes_data_and_weights_keeps_them_apart():
    @jax.jit
    def mixed(x, w):
        return jnp.tanh(x), w.T

    def fn(p, x, t):
        h, w = mixed(x, p["a"])
        return h @ w

    assert names(fn, {"a": A}, X, T) == ["a"]


def test_a_parameter_mixed_into_data_does_not_make_it_a_weight():
    def fn(p, x, t):
        return (x * p["gain"][None]) @ (x + p["bias"][None]).T

    assert names(fn, {"gain": normal(1, 4), "bias": normal(2, 4)}, X, T) == ["dot_0"]


def line_of(fn, text):
    """file.py:12 of the line of a function's source that holds a text."""
    lines, first = inspect.getsourcelines(fn)
    return f"test_listing.py:{first + next(i for i, line in enumerate(lines) if text in line)}"


def test_a_constant_that_multiplies_data_is_named_by_its_line():
    def fn(p, x, t):
        h = (x @ p) @ B  # closed over
        h = (jnp.eye(5) @ h.T).T  # made
        return jax.jit(lambda h: h[:, :4] @ A @ A)(h)  # the same twice

    listed = list_sites(fn, A, X, T)[1:-1]
    over, made, twice = (f"const@{line_of(fn, word)}" for word in ("closed", "made", "twice"))
    assert [s.name for s in listed] == ["params", over, made, twice, f"{twice}#2"]
    assert [s.weight for s in listed] == [1, 1, 0, 1, 1]
    assert [s.is_constant for s in listed] == [False, True, True, True, True]


def test_a_product_inside_a_function_of_jax_is_named_by_the_line_of_its_call():
    def fn(p, x, t):
        first = jnp.convolve(x[0], B[0], mode="same")
        second = jnp.convolve(x[1], B[0], mode="same")  # JAX does not trace it again
        return x + first[None, :4] + second[None, :4]

    lines = [line_of(fn, word) for word in ("first =", "second =")]
    assert [s.name for s in list_sites(fn, A, X, T)[1:-1]] == [f"const@{line}" for line in lines]


def test_a_constant_context_is_data_where_it_meets_a_parameter():
    context = normal(4, 1, 6, 4)

    def fn(p, x, t):
        c = (context - jnp.mean(context)) * p["block"]["gain"][None, None]
        q, k = x @ p["block"]["q"], c @ p["block"]["k"]
        return jnp.einsum("bd,ond->bn", q, k) @ jnp.squeeze(context, 0)

    params = {"block": {"gain": normal(5, 4), "q": A, "k": A + 1}}
    listed = list_sites(fn, params, X, T)[1:-1]
    const = f"const@{line_of(fn, 'einsum')}"
    assert [s.name for s in listed] == ["block/q", "block/k", "block/dot_0", const]
    assert [s.weight for s in listed] == [1, 1, None, 1]


def test_the_largest_parameter_names_a_weight_that_is_mixed_with_constants():
    def fn(p, x, t):
        return x @ (p["w"] * jnp.tri(4, dtype=jnp.float64) + p["bias"][None] * normal(6, 4, 4))

    (site,) = list_sites(fn, {"w": A, "bias": normal(5, 4)}, X, T)[1:-1]
    assert (site.name, site.weight, site.is_constant) == ("w", 1, False)


def test_products_of_parameters_alone_and_of_constants_alone_are_no_sites():
    def fn(p, x, t):
        return x @ (p["down"] @ p["up"]) + x @ (A @ A)

    listed = list_sites(fn, {"down": normal(5, 4, 2), "up": normal(6, 2, 4)}, X, T)[1:-1]
    assert [(s.weight, s.is_constant) for s in listed] == [(1, False), (1, True)]


def test_a_site_knows_the_type_of_its_result():
    def fn(p, x, t):
        return jnp.real(jax.lax.complex(x, x) @ p)

    listed = list_sites(fn, jax.lax.complex(A, A), X, T)
    assert [(s.name, s.dtype, s.is_real) for s in listed] == [
        ("input", "float64", True), ("params", "complex128", False), ("output", "float64", True),
    ]  # fmt: skip


def test_products_of_activations_are_numbered_within_their_common_folder():
    def block(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return (q @ k.T) @ x @ p["o"]

    params = {name: {"q": A, "k": A + 1, "o": A + 2} for name in ("block_0", "block_1")}

    def fn(p, x, t):
        return block(p["block_1"], block(p["block_0"], x))

    inner = [n for n in names(fn, params, X, T) if "dot" in n]
    # The second product of a block joins the scores with x, whose upstream is the edge or block_0.
    assert inner == ["block_0/dot_0", "dot_0", "block_1/dot_0", "dot_1"]


def test_parameters_named_like_the_edges_do_not_hide_them():
    def fn(p, x, t):
        return site((x @ p["input"]) @ p["output"], "logits")

    listed = [s.name for s in list_sites(fn, {"input": A, "output": A}, X, T)]
    assert listed == ["input", "input#2", "output#2", "logits", "output"]


def test_a_mark_is_a_site_and_repeated_marks_are_numbered():
    def fn(p, x, t):
        h = site(jnp.tanh(x), "block/act")
        return site(h * t, "block/act") @ (h.T @ h)

    listed = list_sites(fn, None, X, T)[1:-1]
    assert [(s.name, s.kind, s.macs) for s in listed] == [
        ("block/act", "mark", 0), ("block/act#2", "mark", 0),
        ("block/dot_0", "dot", 4 * 4 * 3), ("block/dot_1", "dot", 3 * 4 * 4),
    ]  # fmt: skip


def test_macs_of_a_network_grow_in_proportion_to_the_batch():
    net = worlds.nnx_net()
    once = list_sites(net.fn, net.params, net.x[:1], net.t)
    twice = list_sites(net.fn, net.params, net.x, net.t)
    for a, b in zip(once, twice, strict=True):
        assert b.macs == a.macs * (1 if a.name == "time/kernel" else 2)
