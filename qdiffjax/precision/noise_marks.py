"""Which noises a calibration or a choice has seen: they may not be scored."""

import dataclasses
import hashlib

import jax
import numpy as np

from qdiffjax._checks import concrete, require


@dataclasses.dataclass(frozen=True)
class NoiseMarks:
    """Fingerprints of keys and of initial noises; all are equal, so that compilations are shared.

    marks: one of each key that noise was drawn from, and of each sample's noise.
    """

    marks: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    def __or__(self, other: "NoiseMarks") -> "NoiseMarks":
        return NoiseMarks(self.marks | other.marks)

    def shared(self, drawn: "NoiseMarks") -> int:
        """Return how many marks both have."""
        return len(self.marks & drawn.marks)

    def check_fresh(self, drawn: "NoiseMarks", what: str) -> None:
        """Refuse noise that has been seen.

        Args:
          drawn: of the noise that is to be scored.
          what: the argument that it came from.

        Raises:
          ValueError: says how many of its keys and noises were seen.
        """
        seen = self.shared(drawn)
        require(not seen, what, got=f"noise that was calibrated or chosen on ({seen} of "
                f"{len(drawn.marks)} marks)", expected="noise that nothing was fitted to",
                remedy="take another key, such as split_noise(key).promise")  # fmt: skip


def marks_of(key=None, x_T=None) -> NoiseMarks:
    """Return the marks of a key, and of each initial noise [num, *shape] that was drawn.

    None is nothing; what is traced leaves no mark.
    """
    marks = set()
    data = None if key is None else concrete(jax.random.key_data(key))
    if data is not None:
        marks.add("key " + data.tobytes().hex())
    noises = None if x_T is None else concrete(x_T)
    for row in () if noises is None else np.asarray(noises, np.float32):
        marks.add("noise " + hashlib.sha256(row.tobytes()).hexdigest()[:16])
    return NoiseMarks(frozenset(marks))
