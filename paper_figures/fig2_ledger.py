"""Figure 2: which site, at which step, makes the error of the samples."""

from matplotlib.figure import Figure

from experiments.error_bounds import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "error_bounds"


def draw(results) -> Figure:
    """Draw one heat map (site, step) per pair of widths, and its sums over steps."""
    return plots.draw_ledger(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig2_ledger")
