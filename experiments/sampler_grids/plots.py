"""Pictures of `experiments.sampler_grids`; needs no JAX."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from qdiffjax._looks import panels


def draw(config, arrays, rows, name: str) -> Figure:
    """Draw samples of one network, a row for each sampler, with the calls of each row."""
    images = arrays[f"{name}/samples"]
    if images.ndim == 6:  # of a video the frame in the middle
        images = images[:, :, images.shape[2] // 2]
    num_rows, num_columns, height = images.shape[:3]
    framed = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=255)
    grid = np.concatenate(np.concatenate(framed.swapaxes(0, 1), axis=2))
    fig, ax = panels(1, 1, (0.5 * num_columns, 0.5 * num_rows))
    ax.imshow(grid[..., 0] if grid.shape[-1] == 1 else grid, cmap="gray", vmin=0, vmax=255,
              interpolation="nearest")  # fmt: skip
    labels = [f"{s} ({n})" for s, n in zip(arrays["samplers"], arrays[f"{name}/nfe"], strict=True)]
    ax.set_yticks((np.arange(num_rows) + 0.5) * (height + 2), labels, fontsize=7)
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(f"{name}: the same noise, by sampler (network calls)", fontsize=9)
    return fig


def pictures(config, arrays, rows) -> dict:
    """Return a picture for each checkpoint."""
    names = [key.removesuffix("/samples") for key in arrays if key.endswith("/samples")]
    return {name: partial(draw, name=name) for name in names}


FIGURES = pictures
