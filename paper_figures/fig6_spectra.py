"""Figure 6: which errors a sampler damps and which it amplifies."""

from matplotlib.figure import Figure

from experiments.harness import store
from experiments.spectra import plots
from paper_figures import style

EXPERIMENT = "spectra"


def draw(results) -> Figure:
    """Draw gains of steps, gains to the end, growth of volumes, and gain against error."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig6_spectra")
