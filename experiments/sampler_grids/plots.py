"""Pictures of `experiments.sampler_grids`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import store


def write(folder) -> None:
    """Write <checkpoint>.png for every checkpoint of the run in `folder` beside it."""
    _, arrays, _ = store.load(folder)
    for key in arrays:
        if key.endswith("/samples"):
            name = key.removesuffix("/samples")
            fig = draw(arrays, name)
            fig.savefig(Path(folder) / f"{name}.png", dpi=120, bbox_inches="tight")


def draw(arrays, name: str) -> Figure:
    """Samples [rows = samplers, columns = samples] of one network, with the calls of each row."""
    images = arrays[f"{name}/samples"]
    if images.ndim == 6:  # of a video the frame in the middle
        images = images[:, :, images.shape[2] // 2]
    num_rows, num_columns, height = images.shape[:3]
    framed = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=255)
    grid = np.concatenate(np.concatenate(framed.swapaxes(0, 1), axis=2))
    fig = Figure(figsize=(0.5 * num_columns, 0.5 * num_rows), layout="constrained")
    ax = fig.subplots()
    ax.imshow(grid[..., 0] if grid.shape[-1] == 1 else grid, cmap="gray", vmin=0, vmax=255,
              interpolation="nearest")  # fmt: skip
    labels = [f"{s} ({n})" for s, n in zip(arrays["samplers"], arrays[f"{name}/nfe"], strict=True)]
    ax.set_yticks((np.arange(num_rows) + 0.5) * (height + 2), labels, fontsize=7)
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(f"{name}: the same noise, by sampler (network calls)", fontsize=9)
    return fig
