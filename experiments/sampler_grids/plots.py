"""Pictures of `experiments.sampler_grids`; needs no JAX."""

import textwrap
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from qdiffjax._looks import SMALL, panels

SAME = 12  # of 255, root mean square: rows that differ by less are one picture


def draw(config, arrays, rows, name: str) -> Figure:
    """Draw samples of one network, a row for each sampler; those that look the same share a row.

    Beside each row stand its samplers, with their network calls.
    """
    images = arrays[f"{name}/samples"]
    if images.ndim == 6:  # of a video the frame in the middle
        images = images[:, :, images.shape[2] // 2]
    calls = [f"{s} ({n})" for s, n in zip(arrays["samplers"], arrays[f"{name}/nfe"], strict=True)]
    alike = grouped(images)
    images = images[[group[0] for group in alike]]
    num_rows, num_columns, height = images.shape[:3]
    framed = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=255)
    grid = np.concatenate(np.concatenate(framed.swapaxes(0, 1), axis=2))
    fig, ax = panels(1, 1, 0.7 + 3.6 * num_rows / num_columns)
    ax.imshow(grid[..., 0] if grid.shape[-1] == 1 else grid, cmap="gray", vmin=0, vmax=255,
              interpolation="nearest")  # fmt: skip
    labels = [calls[group[0]] + " *" * (len(group) > 1) for group in alike]
    others = [", ".join(calls[i] for i in group[1:]) for group in alike if group[1:]]
    ax.set_yticks((np.arange(num_rows) + 0.5) * (height + 2), labels, fontsize=7)
    ax.set_xticks([])
    if others:
        words = "* and, the same to the eye, " + "; ".join(others)
        ax.set_xlabel("\n".join(textwrap.wrap(words, 70)), **SMALL)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{name}: the same noise, by sampler (network calls)", fontsize=8)
    return fig


def grouped(images) -> list[list[int]]:
    """Return the rows of images [rows, columns, ...] that look the same, in order of the first."""
    groups: list[list[int]] = []
    for i, row in enumerate(np.asarray(images, np.int32)):
        same = [g for g in groups if np.sqrt(np.mean((row - np.int32(images[g[0]])) ** 2)) <= SAME]
        (same[0] if same else groups).append(i if same else [i])  # type: ignore[arg-type]
    return groups


def pictures(config, arrays, rows) -> dict:
    """Return a picture for each checkpoint."""
    names = [key.removesuffix("/samples") for key in arrays if key.endswith("/samples")]
    return {name: partial(draw, name=name) for name in names}


FIGURES = pictures
