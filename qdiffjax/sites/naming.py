"""The name of every site, and who reads which parameters."""

import collections
from collections.abc import Callable, Iterable, Sequence

import jax

from qdiffjax.sites.provenance import Label

EDGES = ("input", "output")


class Names:
    """Gives every site its name; copied while a loop body is tried out.

    opaque: what hides products; uses: who reads parameters, as (site or None, paths).
    """

    def __init__(self, counts: dict[str, int] | None = None):
        # The two edges of the network own their names, whatever its parameters are called.
        self.counts = dict(dict.fromkeys(EDGES, 1) if counts is None else counts)
        self.opaque: list[str] = []
        self.uses: list[tuple[str | None, frozenset[str]]] = []

    def copy(self) -> "Names":
        """Return an independent copy."""
        return Names(self.counts)

    def accept(self, trial: "Names") -> None:
        """Take over what a copy has named since."""
        self.counts = trial.counts
        self.opaque, self.uses = self.opaque + trial.opaque, self.uses + trial.uses

    def use(self, reader: str | None, labels: Sequence[Label]) -> None:
        """Note that a site, or None for anything else, reads what carries these labels."""
        paths = frozenset(leaf.path for label in labels for leaf in label.leaves)
        if paths:
            self.uses.append((reader, paths))

    def of_weight(self, path: str) -> str:
        """Name of the next use of a weight, which no other site has."""
        count, name = self.counts.get(path, 0) + 1, path
        while count > 1 and (name := f"{path}#{count}") in self.counts:  # a parameter's own name
            count += 1
        self.counts |= {name: 1, path: count}
        return name

    def of_edge(self, edge: str) -> str:
        """Name of the next place where the network itself begins or ends: input, input#2, ..."""
        count = self.counts["edge:" + edge] = self.counts.get("edge:" + edge, 0) + 1
        return edge if count == 1 else f"{edge}#{count}"

    def of_product(self, upstream: frozenset) -> str:
        """Name of the next product of activations under the sites upstream of it."""
        folder = common_folder(upstream)
        count = self.counts.get(folder + "/dot", 0)
        self.counts[folder + "/dot"] = count + 1
        return self.of_weight(f"{folder}/dot_{count}" if folder else f"dot_{count}")

    def of_value(self, kind: str, upstream: Iterable[str]) -> str:
        """Name of the next value of a kind: in the folder of the last of the names upstream."""
        order = {name: place for place, name in enumerate(self.counts)}
        latest = max(upstream, key=lambda name: (order.get(name, -1), name), default="")
        folder = common_folder([latest])
        count = self.counts.get(f"{folder}/{kind}", 0)
        self.counts[f"{folder}/{kind}"] = count + 1
        return self.of_weight(f"{folder}/{kind}_{count}" if folder else f"{kind}_{count}")


def parameter_names(params, is_leaf: Callable | None = None) -> list[str]:
    """Return the name of every parameter, in the order of the leaves: its path, "/" between keys.

    The frameworks' own words are left out: `params/` in front (linen), and `/value` behind (nnx),
    which is the box of a variable, unlike the projection of an attention that is called so: a box
    holds nothing beside, and is an attribute, or a key where every parameter has its box. Where
    that would give two parameters one name, both keep their whole paths.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf)
    paths = [path for path, _ in leaves]
    inside = collections.Counter(path[:i] for path in paths for i in range(len(path)))
    whole = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    are_boxed = all(name.endswith("/value") for name in whole)

    def short(path, name: str) -> str:
        is_box = are_boxed or isinstance(path[-1], jax.tree_util.GetAttrKey)
        name = name.strip("./").removeprefix("params/")
        return name.removesuffix("/value") if is_box and inside[path[:-1]] == 1 else name

    names = [
        short(path, name) if path else "params" for path, name in zip(paths, whole, strict=True)
    ]
    for longer in (whole, [jax.tree_util.keystr(path) for path in paths]):
        counts = collections.Counter(names)
        names = [n if counts[n] == 1 else w for n, w in zip(names, longer, strict=True)]
    return names


def common_folder(names) -> str:
    """Longest path of folders that all `names` share."""
    folders = [name.split("/")[:-1] for name in names]
    if not folders:
        return ""
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)
