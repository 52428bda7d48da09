"""Figure 12: predicted time of a call in every precision on every chip."""

from matplotlib.figure import Figure

from experiments.hardware_cost import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "hardware_cost"


def draw(results) -> Figure:
    """Draw a panel for each network and batch: rooflines of all products."""
    return plots.draw_chips(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig12_hardware_cost")
