"""The name of every site, and who reads which parameters."""

from collections.abc import Sequence

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
        paths = frozenset(path for label in labels for path, _ in label.leaves)
        if paths:
            self.uses.append((reader, paths))

    def of_weight(self, path: str) -> str:
        """Name of the next use of a weight."""
        self.counts[path] = self.counts.get(path, 0) + 1
        return path if self.counts[path] == 1 else f"{path}#{self.counts[path]}"

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
