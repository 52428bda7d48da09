"""Sizes of a convolution in vector memory."""

from typing import NamedTuple

from qdiffjax.kernels.integers import paddings


class Window(NamedTuple):
    """Sizes of a convolution, static.

    kernel, strides, low: of the window along (height, width), low being the padding before;
    image, padded, out: (height, width) of the input, of what the window sees of it, of the output;
    width: of the output in memory, a multiple of 8; rows: pixels of an output image there, a
    multiple of 32; by_row: whether copies are shifted along rows only.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    low: tuple[int, int]
    image: tuple[int, int]
    padded: tuple[int, int]
    out: tuple[int, int]
    width: int
    rows: int
    by_row: bool

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Shift (rows, columns) of each copy."""
        heights = [0] if self.by_row else range(self.kernel[0])
        return [(dy, dx) for dy in heights for dx in range(self.kernel[1])]

    @property
    def copy_height(self) -> int:
        """Rows of a copy."""
        return self.padded[0] if self.by_row else self.out[0]

    @property
    def copy_rows(self) -> int:
        """Pixels of a copy in memory."""
        return up(self.copy_height * self.width, 32)


def window_of(x_shape, w_shape, window: dict) -> Window:
    """Sizes of a convolution of x [B, H, W, K] with w [h, w, K, N]."""
    kernel, strides = (w_shape[0], w_shape[1]), tuple(window["window_strides"])
    pads = paddings(x_shape, w_shape, window)
    image = x_shape[1], x_shape[2]
    height, width = (
        (n + lo + hi - k) // s + 1
        for n, (lo, hi), k, s in zip(image, pads, kernel, strides, strict=True)
    )
    out, width = (height, width), up(width, 8)
    seen = [(n - 1) * s + k for n, s, k in zip((out[0], width), strides, kernel, strict=True)]
    rows, columns = (max(s, lo + n) for s, (lo, _), n in zip(seen, pads, image, strict=True))
    by_row = width % 32 == 0 and strides[0] == 1
    low = (pads[0][0], pads[1][0])
    return Window(
        kernel, strides, low, image, (rows, columns), out, width, up(out[0] * width, 32), by_row
    )


def up(n: int, unit: int) -> int:
    """Smallest multiple of unit that is at least n."""
    return -(-n // unit) * unit
