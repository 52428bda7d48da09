"""Figure 1: accumulated error and its bounds over the sampling trajectory."""

from matplotlib.figure import Figure

from experiments.error_bounds import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "error_bounds"


def draw(results) -> Figure:
    """Draw one panel per pair of widths: measured and predicted error, and two bounds."""
    return plots.draw_errors(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig1_error_bounds")
