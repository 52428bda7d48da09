"""Figure 4: signal to quantization noise of every number format, predicted and measured."""

from matplotlib.figure import Figure

from experiments.harness import store
from experiments.number_formats import plots
from paper_figures import style

EXPERIMENT = "number_formats"


def draw(results) -> Figure:
    """Draw SQNR against bits for each kind of numbers, and how far off the prediction is."""
    return plots.draw(results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig4_number_formats")
