"""Figures show the numbers they were given, all of them, with names that can be read."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from qdiffjax import plots
from qdiffjax.precision import Recipe, SiteBits
from qdiffjax.sites.plan import Site
from tests import made_up

SITES = [
    Site("input", "input", None, None, ((1, 4),), (1, 4), ((),)),
    Site("a/kernel", "conv", 1, "a/kernel", ((1, 4), (4, 4)), (1, 4), ((1,), (0,)), 30, 16),
    Site("dot_0", "dot", None, None, ((1, 4), (1, 4)), (1, 1), ((1,), (1,)), 10),
]


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def test_the_heat_map_of_a_ledger_is_its_shares_in_the_order_of_the_sites():
    ledger, order = made_up.ledger(), made_up.SITES[::-1]
    ax, side, *_ = plots.plot_ledger(ledger, order).axes
    np.testing.assert_allclose(ax.images[0].get_array(), ledger.shares().T[::-1])
    np.testing.assert_allclose(widths(side), ledger.shares().sum(0)[::-1])
    assert labels(ax.yaxis) == list(order)


def test_bars_of_the_sites_are_shares_of_all():
    macs, parameters = plots.plot_sites(SITES).axes
    assert widths(macs) == [0.0, 75.0, 25.0]
    assert widths(parameters) == [0.0, 100.0, 0.0]
    assert labels(macs.yaxis) == ["input", "a/kernel", "dot_0"]


def test_a_recipe_says_the_bits_of_each_operand_and_where_it_stays_float():
    recipe = Recipe({"a/kernel": SiteBits(4, 8)})
    ax = plots.plot_recipe(recipe, SITES).axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["", "float", "4", "8", "", "float"]  # input and dot_0 have no weight


def test_curves_of_a_study_are_its_numbers_and_bounds_are_per_element():
    study = made_up.study()
    curves = {c.get_label(): c.get_ydata() for c in plots.plot_errors(study).axes[0].lines}
    np.testing.assert_allclose(curves["error, measured"][1:], study.error_rms[1:])
    bound = study.bounded.remainder / 2  # four elements a sample
    assert curves["remainder bound, median"][-1] in bound[-1]


def test_a_long_name_keeps_both_ends():
    name = "encoder/" + "block/" * 20 + "kernel"
    assert plots.short(name).startswith("encoder/")
    assert plots.short(name).endswith("/kernel")
    assert len(plots.short(name)) <= plots.LONGEST
    assert plots.short("kernel") == "kernel"


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 300])
def test_no_name_is_cut_off_or_drawn_over_another(num):
    names = [f"block_{i}/attention/kernel" for i in range(num)]
    fig, (ax, _) = plots.by_site(names, "Sites")
    fig.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert min(box.x0 for box in boxes) >= 0
    assert all(low.y1 <= high.y0 for high, low in itertools.pairwise(boxes))
    assert isinstance(fig, Figure)


def test_figures_and_pages_load_no_jax_and_matplotlib_only_to_draw():
    code = (
        "import sys, qdiffjax.plots, qdiffjax.reports, qdiffjax.results; "
        "sys.exit(str([m for m in ('jax', 'matplotlib') if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == "[]"
