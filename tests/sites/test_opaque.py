"""What cannot be reached runs unchanged and is reported; what can be left whole is left whole."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import precision
from qdiffjax.quant import ActivationGrid, IntFormat
from qdiffjax.sites import Sites, list_sites, rules, site, transform
from tests.worlds import normal

A, X, T = normal(1, 4, 4), normal(2, 3, 4), jnp.float64(0.3)


def while_dot(p, x, t):
    return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p)), (0, x))[
        1
    ]


def fori_dot(p, x, t):  # a traced bound makes a while loop
    return jax.lax.fori_loop(0, (t > 0).astype(int) + 1, lambda i, h: jnp.tanh(h @ p), x)


def cond_dot(p, x, t):
    return jax.lax.cond(t > 0, lambda x: x @ p, lambda x: x, x)


@jax.custom_vjp
def vjp_dot_rule(x, p):
    return x @ p


vjp_dot_rule.defvjp(lambda x, p: (x @ p, (x, p)), lambda res, u: (7.0 * u, 0.0 * res[1]))


def vjp_dot(p, x, t):
    return vjp_dot_rule(x, p)


def scanned_while_dot(p, x, t):
    return jax.lax.scan(lambda h, _: (while_dot(p, h, t), None), x, length=2)[0]


def marked_in_while(p, x, t):
    return jax.lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, site(s[1] * 2.0, "m")), (0, x)
    )[1]


HIDING = {
    while_dot: "while hides dot_general",
    fori_dot: "while hides dot_general",
    cond_dot: "cond hides dot_general",
    vjp_dot: "custom_vjp_call hides dot_general",
    scanned_while_dot: "while hides dot_general",
    marked_in_while: "while hides a marked site",
}


def rounding_inputs():
    one = jnp.float64(1.0)
    return {"input": precision.SiteQuant(None, (ActivationGrid(IntFormat(jnp.int32(2)), one),))}


@pytest.mark.parametrize(("fn", "report"), HIDING.items(), ids=[f.__name__ for f in HIDING])
def test_hidden_products_are_reported_and_run_unchanged(fn, report):
    listed = list_sites(fn, A, X, T)
    (entry,) = listed.opaque
    assert [s.name for s in listed] == ["input", "output"]
    words, line = entry.split(" at test_opaque.py:")
    assert words == report
    source, first = inspect.getsourcelines(while_dot if fn is scanned_while_dot else fn)
    assert first < int(line) < first + len(source)
    g = jax.jit(transform(fn, precision.quantize_site))
    plain, _ = g(A, X, T)
    assert np.asarray(plain).tobytes() == np.asarray(jax.jit(fn)(A, X, T)).tobytes()
    # The rest of the network is still under the rule: here its input, rounded to integers.
    rounded, _ = g(A, X, T, site_inputs=rounding_inputs())
    np.testing.assert_allclose(rounded, fn(A, jnp.clip(jnp.round(X), -1, 1), T), rtol=1e-12)


def while_plain(p, x, t):
    return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.tanh(s[1])), (0, x))[1]


def cond_plain(p, x, t):
    return jax.lax.cond(t > 0, jnp.tanh, lambda x: x, x)


@jax.custom_vjp
def vjp_plain_rule(x):
    return jnp.tanh(x)


vjp_plain_rule.defvjp(lambda x: (jnp.tanh(x), x), lambda x, u: (7.0 * u,))


def vjp_plain(p, x, t):
    return vjp_plain_rule(x)


def of_weights_only(p, x, t):  # no data inside: nothing there is a site
    return x * jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] @ p), (0, p))[1][:3]


@pytest.mark.parametrize("fn", [while_plain, cond_plain, vjp_plain, of_weights_only])
def test_control_flow_without_products_of_data_is_not_reported(fn):
    assert list_sites(fn, A, X, T).opaque == ()
    got, _ = jax.jit(transform(fn, rules.plain))(A, X, T)
    assert np.asarray(got).tobytes() == np.asarray(jax.jit(fn)(A, X, T)).tobytes()


def test_a_custom_vjp_keeps_its_rule():
    for fn in (vjp_plain, vjp_dot):
        g = transform(fn, rules.plain)
        grad = jax.grad(lambda x, g=g: jnp.sum(g(A, x, T)[0]))(X)
        np.testing.assert_array_equal(grad, np.full(X.shape, 7.0))  # its rule, not the derivative


@jax.custom_jvp
def tripled_dot(x, p):
    return x @ p


@tripled_dot.defjvp
def _(primals, tangents):
    return tripled_dot(*primals), 3.0 * (tangents[0] @ primals[1])


@jax.custom_jvp
def tripled_tanh(x):
    return jnp.tanh(x)


@tripled_tanh.defjvp
def _(primals, tangents):
    return tripled_tanh(*primals), 3.0 * tangents[0]


def test_a_custom_jvp_that_hides_a_product_is_walked_into_and_derived_from_inside():
    def fn(p, x, t):
        return tripled_dot(x, p)

    assert list_sites(fn, A, X, T).opaque == ()
    assert [s.name for s in list_sites(fn, A, X, T)] == ["input", "params", "output"]
    g = transform(fn, rules.plain)
    _, tangent = jax.jvp(lambda x: g(A, x, T)[0], (X,), (X,))
    np.testing.assert_allclose(tangent, np.asarray(X) @ np.asarray(A), rtol=1e-12)


def test_a_custom_jvp_without_products_is_left_whole_with_its_rule():
    def fn(p, x, t):
        return tripled_tanh(x @ p)

    g = transform(fn, rules.plain)
    _, tangent = jax.jvp(lambda x: g(A, x, T)[0], (X,), (X,))
    np.testing.assert_allclose(tangent, 3.0 * np.asarray(X) @ np.asarray(A), rtol=1e-12)


def test_a_ragged_product_is_reported():
    def ragged(p, x, t):
        return jax.lax.ragged_dot(x, p[None], jnp.asarray([3], jnp.int32))

    (report,) = list_sites(ragged, A, X, T).opaque
    assert report.startswith("ragged_dot")


def test_what_is_opaque_survives_a_copy_and_takes_no_part_in_comparisons():
    listed = list_sites(while_dot, A, X, T)
    assert pickle.loads(pickle.dumps(listed)).opaque == listed.opaque
    assert (listed, hash(listed)) == (Sites(listed), hash(Sites(listed)))
