"""Figure 7: failure of first order, foretold from the full-precision run."""

from matplotlib.figure import Figure

from experiments.first_order_failure import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "first_order_failure"


def draw(results) -> Figure:
    """Draw measured against predicted relative error, a dot a sample and width."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig7_first_order_failure")
