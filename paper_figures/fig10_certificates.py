"""Figure 10: certified errors of one call and of whole runs, beside measured ones."""

from matplotlib.figure import Figure

from experiments.certificates import plots
from experiments.harness import store
from paper_figures import style

EXPERIMENT = "certificates"


def draw(results) -> Figure:
    """Draw certified over worst found against boxes, and certified errors along runs."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig10_certificates")
