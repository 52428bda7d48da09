"""How a product is cut: measured on each chip, overridden by whoever knows better."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tile:
    """One block of the output and the steps that sum it.

    Attributes:
      rows, columns: of the output, of one block; two warpgroups share it out.
      depth: of the sum, of one step; 128 codes fill a line of the swizzled shared memory.
      stages: steps in shared memory at once.
      split: axis of the output along which the two warpgroups divide a block.
      multicast: axis along which two neighbouring blocks form a cluster and load the other
        operand once for both; None for no cluster.
      band: width in blocks of the strips in which blocks follow one another, for the L2 cache.
      overlap: steps whose product may still run when the next one starts.
    """

    rows: int = 128
    columns: int = 256
    depth: int = 128
    stages: int = 4
    split: int = 0
    multicast: int | None = None
    band: int = 8
    overlap: int = 0

    @property
    def part(self) -> tuple[int, int]:
        """Rows and columns of one warpgroup."""
        halves = (2, 1) if self.split == 0 else (1, 2)
        return self.rows // halves[0], self.columns // halves[1]

    @property
    def cluster(self) -> tuple[int, int]:
        """Rows and columns of one cluster of blocks."""
        times = [2 if self.multicast == axis else 1 for axis in (0, 1)]
        return self.rows * times[0], self.columns * times[1]


# Bytes for steps: less the output's ring and barriers.
SHARED = 227 * 1024 - 2 * 2 * 64 * 128 - 2048


def choose(m: int, n: int, k: int, cores: int) -> Tile | None:
    """Return the tile of [M, N, K] that keeps `cores` busy, or None where none divides N and K.

    Blocks run in waves of one for each core: what counts is waves * columns, and something for
    starting each block, more where its lines are narrow. On an H200 this orders all widths that
    were timed as the clock did. M is padded.
    """
    depth = next((d for d in (128, 192, 64) if k % d == 0), None)
    widths = [c for c in (256, 192, 160, 128, 96, 64) if n % c == 0]
    if depth is None or not widths:
        return None

    def cost(columns: int) -> int:
        start = 32 if columns % 64 == 0 else 48
        return -(-(-(-m // 128) * (n // columns)) // cores) * (columns + start)

    columns = min(widths, key=cost)
    stages = min(SHARED // ((128 + columns) * depth), 8)
    multicast = 0 if m % 256 == 0 and cores % 2 == 0 else None
    return Tile(columns=columns, depth=depth, stages=stages, multicast=multicast)
