"""Figure 9: clipped noise grows along the sampler."""

from matplotlib.figure import Figure

from experiments.clipping import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "clipping"


def draw(results) -> Figure:
    """Draw the error of the most clipped pixel, and the errors of all samples."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig9_clipping")
