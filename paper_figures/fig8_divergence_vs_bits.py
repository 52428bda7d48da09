"""Figure 8: what quantization costs the law of the samples."""

from matplotlib.figure import Figure

from experiments.divergence_vs_bits import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "divergence_vs_bits"


def draw(results) -> Figure:
    """Draw distances against bits beside their floors, which steps matter, and tails."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig8_divergence_vs_bits")
