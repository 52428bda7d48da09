"""Figure 5: how the error grows with steps, bits and sampler."""

from matplotlib.figure import Figure

from experiments.harness import store
from experiments.propagation_laws import plots
from paper_figures import style

EXPERIMENT = "propagation_laws"


def draw(results) -> Figure:
    """Draw measured and predicted medians against steps and bits, and bars by sampler."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig5_propagation_laws")
