"""List the named sites of a function."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from qdiffjax import _compat
from qdiffjax._checks import check_callable, require, suggest
from qdiffjax.sites.absent import shapes
from qdiffjax.sites.naming import EDGES, Names, parameter_names
from qdiffjax.sites.plan import EDGE, MARK, Place, Plan, identity_site, make_plan
from qdiffjax.sites.provenance import Label, Leaf, size
from qdiffjax.sites.records import Site, Sites
from qdiffjax.sites.values import KINDS

# In globs: the last layer, products of activations, values that are sites on request.
LAST, PRODUCTS, VALUES = "last", "products", "values"


class Traced(NamedTuple):
    """A function as its jaxpr, with the plan of its sites."""

    jaxpr: Any
    consts: list
    plan: Plan
    sites: tuple[Site, ...]  # loops not expanded; includes input and output
    opaque: tuple[str, ...]
    uses: tuple[tuple[str | None, frozenset[str]], ...]  # who reads which parameters
    out_tree: Any
    edges: dict[str, Site]  # x and the result, where the function marks no edge of its own


def site(x, name: str):
    """Return x, and make it a site called `name`, where a rule may act.

    The identity under every other use: jit, vmap and both modes of autodiff pass through it.
    """
    return checkpoint_name(x, MARK + name)


def edge(x, name: str):
    """Return x, and make it the network's `input` or `output`, in place of x and the result.

    For a function around a network: what converts its prediction or scales its input stays in full
    precision, and the site is where the network itself begins or ends. The identity, as `site`.
    """
    require(name in EDGES, "edge", got=repr(name), expected=f"one of {EDGES}",
            remedy="use `site` for other places")  # fmt: skip
    return checkpoint_name(x, EDGE + name)


def trace(fn, args) -> Traced:
    """Trace fn(params, x, ...) and plan its sites."""
    check_callable("fn", fn, "(params, x, ...) -> result")
    args = shapes(args)
    closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, consts = _compat.open_jaxpr(closed)
    names = Names()
    labels = [*(Label(constant=size(c)) for c in consts), *_argument_labels(args)]
    plan, results = make_plan(jaxpr, labels, names, Place())
    names.use(None, results)
    out_leaves, out_tree = jax.tree.flatten(out_shape)
    inner = plan.sites()
    marked = {site.kind for site in inner}
    ends = {"input": jax.tree.leaves(args[1])}
    ends |= {"output": out_leaves} if len(out_leaves) == 1 else {}
    edges = {
        name: identity_site(name, name, leaves[0])
        for name, leaves in ends.items()
        if name not in marked
    }
    first, last = ([edges[name]] if name in edges else [] for name in EDGES)
    listed = (*first, *inner, *last)
    uses = tuple(names.uses)
    return Traced(jaxpr, consts, plan, listed, tuple(names.opaque), uses, out_tree, edges)


def _argument_labels(args) -> list[Label]:
    require(
        len(args) > 1 and len(jax.tree.leaves(args[1])) == 1, "denoiser", error=TypeError,
        got=f"{len(args)} arguments, the second of which is not one array",
        expected="(params, x, ...) with one array x", remedy="wrap your function to that signature",
    )  # fmt: skip
    labels = [
        Label(frozenset({Leaf(name, size(leaf))}))
        for name, leaf in zip(parameter_names(args[0]), jax.tree.leaves(args[0]), strict=True)
    ]
    labels.append(Label(sites=frozenset({"input"}), is_data=True))
    labels += [Label(is_data=True) for _ in jax.tree.leaves(args[2:])]
    return labels


def expand(template: Site) -> list[Site]:
    """One site per iteration of the loops around it: kernel[0], kernel[1], ..."""
    if not template.loops:
        return [template]
    indices = itertools.product(*(range(n) for n in template.loops))
    names = [template.name + "".join(f"[{i}]" for i in index) for index in indices]
    return [dataclasses.replace(template, name=name, loops=()) for name in names]


def list_sites(fn, *args) -> Sites:
    """List the sites of a denoiser, in the order of evaluation.

    A site is a matrix product or convolution with data in it, a product of activations, the
    `input` x, the `output`, or a value marked with `sites.site`. An operand that depends on
    parameters, and at most constants beside, is a weight, and names the site by its path. What
    comes from constants alone is data where it meets a parameter; where it meets data it is a
    weight, but `is_constant`, and names the site by its line of source.

    Args:
      fn: eps_fn(params, x, t, ...); any framework's, never edited.
      args: example arguments, or their shapes (`jax.ShapeDtypeStruct`); nothing is computed.

    Returns:
      Sites with names, shapes, multiply-accumulates and parameters; its `opaque` says what hides
      products that no rule can reach, such as a while loop.

    Example:
      >>> import jax.numpy as jnp, qdiffjax as qd
      >>> eps_fn = lambda params, x, t: jnp.tanh(x @ params["in"]) @ params["out"]
      >>> params = {"in": jnp.ones((2, 8)), "out": jnp.ones((8, 2))}
      >>> sites = qd.list_sites(eps_fn, params, jnp.ones((1, 2)), 0.0)
      >>> [(site.name, site.macs) for site in sites]
      [('input', 0), ('in', 16), ('out', 16), ('output', 0)]
    """
    traced = trace(fn, args)
    return Sites((s for template in traced.sites for s in expand(template)), traced.opaque)


def match(all_sites: Sequence[Site], globs: Iterable[str]) -> tuple[str, ...]:
    """Names of the sites that match any glob, in order; `*` matches across slashes.

    A glob that begins with `!` takes its matches away from those before it. Brackets are
    literal, since site names contain them. Where no site is called so, `last` is the last one that
    has parameters, the network's last layer, and `products` are all products of activations (the
    scores of attention and their sum), of which there may be none. `values` are all values that are
    sites on request, of which there may be none; `residual`, `skip`, `softmax`, `norm` and `named`
    those of a kind.

    Raises:
      TypeError: globs in one text.
      ValueError: a glob matches nothing; names the nearest sites.
    """
    require(not isinstance(globs, str), "globs", got=repr(globs), expected="a tuple of them",
            remedy=f"({globs!r},)", error=TypeError)  # fmt: skip
    names = [s.name for s in all_sites]
    chosen: set[str] = set()
    for glob in globs:
        pattern = glob.removeprefix("!")
        hits = fnmatch.filter(names, pattern.replace("[", "[[]"))
        if pattern == LAST and not hits:
            hits = [s.name for s in all_sites if s.weight is not None and not s.is_constant][-1:]
        if pattern in KINDS and not hits:
            hits = [s.name for s in all_sites if s.kind == pattern]
        if pattern == PRODUCTS and not hits:
            hits = [s.name for s in all_sites if s.weight is None and s.product is not None]
        elif pattern == VALUES and not hits:
            hits = [s.name for s in all_sites if s.is_value]
        elif not hits:
            require(False, "sites", got=f"{pattern!r}, which no site matches",
                    expected=f"a glob of some of {len(names)} names",
                    remedy=f"ask for them: denoiser.with_values({pattern!r}); "
                    "what is not recognised can be named, see `sites.values`"
                    if pattern in KINDS else suggest(pattern, names))  # fmt: skip
        chosen = chosen - set(hits) if glob.startswith("!") else chosen | set(hits)
    return tuple(name for name in names if name in chosen)
