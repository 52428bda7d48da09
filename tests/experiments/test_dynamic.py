"""Limits, costs, savings and what figures say of made-up rows."""

import io

import jax
import numpy as np
import pytest
from scipy import stats

import qdiffjax as qd
from experiments.dynamic import experiment as dynamic
from experiments.dynamic import plots
from experiments.harness import command
from qdiffjax import _tables as tables
from tests import worlds


def test_the_lower_limit_is_where_so_many_are_seen_once_in_twenty():
    assert dynamic.lower_limit(128, 128) == pytest.approx(0.05 ** (1 / 128), rel=1e-9)
    low = dynamic.lower_limit(490, 512)
    assert stats.binom.sf(489, 512, low) == pytest.approx(0.05, rel=1e-6)


def test_an_oracle_takes_the_cheapest_that_is_within():
    errors = [[0.3, 0.1, 0.3], [0.2, 0.4, 0.3], [0.1, 0.1, 0.3]]
    assert dynamic.cheapest_within(errors, 0.2).tolist() == [1, 0, 2]


def test_bit_operations_are_those_of_quantized_products():
    """x [4] through [4, 6] at 4 x 8 bits; the second product is left out."""
    params = {"in": worlds.normal32(1, 4, 6), "out": worlds.normal32(2, 6, 4)}
    denoiser = qd.Denoiser(lambda p, x, t: x @ p["in"] @ p["out"], params, qd.linear(50), (4,))
    steps = qd.ddim(denoiser.schedule, 2)
    q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W4A8", sites=("in",))
    assert dynamic.bit_operations(denoiser.sites(), q) == 4 * 6 * 4 * 8


def test_what_features_explain_is_the_share_of_the_variance():
    features = np.asarray(worlds.normal(1, 2, 50, 1))
    errors = np.exp(2 * features[0, :, 0])  # all of it by the first call, at a slope of 2

    class Made:
        class controller:
            centers, slopes = np.zeros((2, 1)), np.array([[2.0], [0.0]])

    found = dynamic.strategies.Scored(errors, np.zeros((2, 50)), features)
    np.testing.assert_allclose(dynamic.explained(Made, found), [1, 0], atol=1e-12)


def made_up():
    """A recipe of 8, a schedule of 6 and samples that take 3 in the mean, the oracle 1.5."""
    kept = {"within": 7, "num": 8, "low": 0.5, "rmse": 0.1}
    rows = [
        {"family": "both", "part": "beforehand", "prices": [2.0, 6.0, 8.0],
         "recipe": {"cost": 8.0, "name": "W8A8", **kept}, "schedule": {"cost": 6.0, **kept},
         "oracle": {"cost": 1.5, **kept}},
        {"family": "both", "part": "dynamic", "cost": 3.0, "explained": [0.1, 0.2], **kept,
         "shifts": [{"name": "more noise", "cost": 2.0, **kept, "schedule": kept}]},
        {"family": "both", "part": "time", "overhead": [0.01, -0.02, 0.03]},
    ]  # fmt: skip
    arrays = {"both, beforehand/errors": np.full((3, 4), 0.2),
              "both, beforehand/schedule_errors": np.exp([1.0, 2.0, 3.0, 4.0]),
              "both, dynamic/costs": np.array([2.0, 4.0, 4.0, 2.0]),
              "both, dynamic/errors": np.full(4, 0.1)}  # fmt: skip
    return arrays, rows


def test_savings_are_shares_of_the_dearer():
    found = plots.savings(made_up()[1], "both")
    assert found == {"schedule over recipe": 0.25, "dynamic over recipe": 0.625,
                     "dynamic over schedule": 0.5, "oracle over schedule": 0.75}  # fmt: skip


def test_what_the_controller_foresees_is_a_correlation_with_logs():
    arrays, _ = made_up()
    assert plots.told(arrays, "both") == pytest.approx(0)
    arrays["both, dynamic/costs"] = np.array([1.0, 2.0, 3.0, 4.0])
    assert plots.told(arrays, "both") == pytest.approx(1)


def test_figure_and_tables_show_all_that_was_chosen():
    arrays, rows = made_up()
    figure = plots.draw({"checkpoint": "runs/tiny", "tolerance": 0.15}, arrays, rows)
    assert figure.axes[0].get_title() == "tiny, both"
    assert len(figure.legends[0].get_texts()) == 7
    tables.show(plots.table(rows), text := io.StringIO())
    for words in ("recipe W8A8", "schedule by step", "0.188", "7 of 8", "more noise", "+1.0%"):
        assert words in text.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"bits": (8, 6)}, "bits"), ({"bits": (8,)}, "bits"), ({"num_test": 58}, "at least 59"),
     ({"share": 0.001}, "at least"), ({"tolerance": 0.0}, "tolerance"),
     ({"families": ("weights",)}, "families")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change, words):
    with pytest.raises(ValueError, match=words):
        command.check(dynamic.Config(**change))
