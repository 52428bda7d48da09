"""Foreign weights: torch-layout arrays into a Flax network, through a declared map.

A map says for each Flax parameter which array it is and how that is laid out:

    sources = {
        **linear("time/dense_1", "te1.0"),
        **conv("conv_in", "conv1"),
        "norm/scale": Source("ln.weight", channels_last),
    }
    params = load_foreign(dict(np.load("weights.npz")), expected_shapes, sources)

or one for all layers of a network, in which names are translated word by word: `translated`.
Nothing is guessed: a parameter without a source, a name that is not in the file, a shape that does
not fit, and an array that no parameter uses are errors.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from qdiffjax._checks import require

Layout = Callable[[np.ndarray], np.ndarray]


def same(a):
    """Keep the array: biases, scales and embedding tables."""
    return a


def linear_kernel(a):
    """Map torch's Linear.weight [out, in] to a Dense kernel [in, out]."""
    return a.T


def conv_kernel(a):
    """Map torch's Conv2d.weight [out, in / groups, h, w] to a kernel [h, w, in / groups, out]."""
    return a.transpose(2, 3, 1, 0)


def conv_transpose_kernel(a):
    """Map torch's ConvTranspose2d.weight [in, out, h, w] to a ConvTranspose kernel [h, w, in, out].

    Mirrored in space: torch's is the transpose of a correlation, Flax's (transpose_kernel=False) a
    correlation with the dilated input. Torch's padding p is Flax's padding k - 1 - p on each side.
    """
    return a[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)


def channels_last(a):
    """Map [c, h, w] to [h, w, c]: a LayerNorm over whole images."""
    return a.transpose(1, 2, 0)


def part(index: int, num: int, layout: Layout = same) -> Layout:
    """Return the layout of one of `num` equal parts of the first axis, such as q of a fused qkv."""
    return lambda a: layout(np.split(a, num)[index])


class Source(NamedTuple):
    """The array that a parameter comes from, and the function to this house's layout."""

    name: str
    layout: Layout = same


Sources = Mapping[str, Source]


def linear(path: str, name: str, *, bias: bool = True) -> dict[str, Source]:
    """Return the sources of the Dense layer at `path` from torch's Linear `name`."""
    return _layer(path, name, "kernel", linear_kernel, bias)


def conv(path: str, name: str, *, bias: bool = True) -> dict[str, Source]:
    """Return the sources of the Conv at `path` from torch's Conv2d `name`."""
    return _layer(path, name, "kernel", conv_kernel, bias)


def conv_transpose(path: str, name: str, *, bias: bool = True) -> dict[str, Source]:
    """Return the sources of the ConvTranspose at `path` from torch's ConvTranspose2d `name`."""
    return _layer(path, name, "kernel", conv_transpose_kernel, bias)


def norm(path: str, name: str) -> dict[str, Source]:
    """Return the sources of a norm over channels at `path` (LayerNorm, GroupNorm)."""
    return _layer(path, name, "scale", same, True)


def fused_attention(path: str, name: str, *, bias: bool = True) -> dict[str, Source]:
    """Return the sources of query, key and value at `path` from one Linear `name` [3 d, d]."""
    found = {}
    for i, which in enumerate(("query", "key", "value")):
        found[f"{path}/{which}/kernel"] = Source(f"{name}.weight", part(i, 3, linear_kernel))
        if bias:
            found[f"{path}/{which}/bias"] = Source(f"{name}.bias", part(i, 3))
    return found


def _layer(path, name, weight, layout, bias):
    found = {f"{path}/{weight}": Source(f"{name}.weight", layout)}
    return found | ({f"{path}/bias": Source(f"{name}.bias")} if bias else {})


# What the last word of a path is there, and the layout by the rank of the parameter here.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_LAYOUTS = {("kernel", 2): linear_kernel, ("kernel", 4): conv_kernel}


def translated(expected, words: Mapping[str, str]) -> dict[str, Source]:
    r"""Return the sources of all parameters, in whose paths words become theirs.

        {r"down_(\d+)_block_(\d+)": "down_blocks.{}.resnets.{}", "conv_1": "conv1"} makes of
        down_0_block_1/conv_1/kernel  down_blocks.0.resnets.1.conv1.weight

    Args:
      expected: pytree of shapes, as of `load_foreign`.
      words: regular expressions of one or more levels of a path, such as "mlp/up", and what each
        is there, {} standing for its groups. Of several that match, the longest is taken.

    Raises:
      ValueError: a path with a word that is not in the list.
    """
    return {path: _translated(path, leaf, words) for path, leaf in _by_path(expected).items()}


def _translated(path: str, leaf, words: Mapping[str, str]) -> Source:
    *levels, last = path.split("/")
    theirs = []
    while levels:
        found = [(n, pattern, match) for n in range(len(levels), 0, -1) for pattern in words
                 if (match := re.fullmatch(pattern, "/".join(levels[:n])))]  # fmt: skip
        require(found, path, got=repr(levels[0]), expected="a word of the map",
                remedy="add it")  # fmt: skip
        num, pattern, match = found[0]
        theirs.append(words[pattern].format(*match.groups()))
        del levels[:num]
    layout = _LAYOUTS.get((last, len(leaf.shape)), same)
    return Source(".".join([*filter(None, theirs), _LEAVES[last]]), layout)


def _by_path(expected) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }


def load_foreign(
    arrays: Mapping[str, np.ndarray], expected, sources: Sources, *, unused: Iterable[str] = ()
):
    """Return the parameters that `expected` describes, taken from `arrays`.

    Args:
      arrays: foreign arrays by name, such as dict(np.load(path)).
      expected: pytree of shapes (of `jax.eval_shape(network.init, ...)`), nested dicts by name;
        the outer "params/" is left out of the paths.
      sources: where each parameter comes from, by its path "block/conv/kernel".
      unused: names of arrays that no parameter needs.

    Raises:
      ValueError: the map, the file and the network do not fit; names what does not.
    """
    leaves = _by_path(expected)
    _check_names("parameters without a source", set(leaves) - set(sources))
    _check_names("sources of parameters that do not exist", set(sources) - set(leaves))
    names = {source.name for source in sources.values()}
    _check_names("arrays that are not in the file", names - set(arrays))
    _check_names("arrays that nothing uses", set(arrays) - names - set(unused))
    found = [_take(arrays, path, sources[path], leaf) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(expected), found)


def _check_names(what: str, names: set[str]) -> None:
    listed = ", ".join(sorted(names)[:8])
    require(not names, got=f"{len(names)} {what}: {listed}", expected="none",
            remedy="complete the map of sources (or list in `unused`)")  # fmt: skip


def _take(arrays, path, source, leaf):
    raw = np.asarray(arrays[source.name])
    array = np.ascontiguousarray(source.layout(raw))
    require(array.shape == leaf.shape, f"{source.name} {raw.shape}", got=f"{array.shape} of it",
            expected=f"{leaf.shape} for {path}",
            remedy="another layout, or another network")  # fmt: skip
    return jax.numpy.asarray(array.astype(leaf.dtype))
