"""Figure 11: bounds over what they bound, in thousands of random trials."""

from matplotlib.figure import Figure

from experiments.harness import store
from experiments.random_trials import plots
from paper_figures import style

EXPERIMENT = "random_trials"


def draw(results) -> Figure:
    """Draw the densities of all ratios by kind of bound, and the share of finite bounds."""
    return plots.draw(*results)


if __name__ == "__main__":
    style.save(draw(store.load(store.RESULTS / EXPERIMENT)), "fig11_random_trials")
