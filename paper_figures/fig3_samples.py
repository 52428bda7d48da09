"""Figure 3: samples of the full-precision and the quantized networks on the same noise."""

from matplotlib.figure import Figure

from experiments.error_bounds import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "error_bounds"


def draw(results) -> Figure:
    """Draw a row of samples, then a row and its magnified difference per pair of widths."""
    return plots.draw_samples(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig3_samples")
