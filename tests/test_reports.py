"""What comes back can be read: tables, ledgers, lists of sites, recipes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision, results, studies
from qdiffjax._cells import block_name, top_cells
from qdiffjax._tables import Page, Table, number
from qdiffjax.analysis.errors import Ledger, warn_of_defect
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import Recipe, SiteBits
from qdiffjax.sites import list_sites
from tests import made_up

# Two samples, two steps, two sites; the second sample's entries are three times the first's.
ENTRIES = {"down_0/conv/kernel": [[3.0, -1.0], [9.0, -3.0]], "input": [[2.0, 0.0], [6.0, 0.0]]}
X_0, X_HAT_0 = jnp.zeros((2, 4)), jnp.broadcast_to(jnp.array([[2.0], [12.0**0.5]]), (2, 4))


def ledger_of(change=(4.0, 12.0), entries=ENTRIES):
    return Ledger({name: jnp.asarray(c) for name, c in entries.items()},
                  None if change is None else jnp.asarray(change), X_0, X_HAT_0)  # fmt: skip


def words(text):
    return " ".join(str(text).split())


def test_a_table_is_its_title_its_columns_its_cells_and_its_notes():
    table = Table("A title", ("name", "share", "n"), (("a[b]", 1.25, 12345), (None, None, 1)),
                  ("A note.",), {"share": "+.1f"})  # fmt: skip
    assert words(table) == "A title name share n " + "─" * 19 + " a[b] +1.2 12,345 1 A note."


def test_a_long_table_prints_its_first_rows_and_says_so():
    table = Table("", ("i",), tuple((i,) for i in range(250)))
    assert "... and 150 rows more" in str(table)
    assert len(table.text().splitlines()) == 252  # all, a head and a rule


def test_html_is_escaped():
    page = Page((Table("<t>", ("a<b",), (("<script>",),), ("x & y",)), "1 < 2"))
    markup = page._repr_html_()
    assert "<script>" not in markup
    for text in ("&lt;t&gt;", "a&lt;b", "&lt;script&gt;", "x &amp; y", "1 &lt; 2"):
        assert text in markup


def test_without_pandas_a_data_frame_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        Table("", ("a",), ((1,),)).to_dataframe()


def test_a_ledger_of_known_entries_is_read_as_worked_by_hand():
    # Means over the samples: 6, -2 and 4, 0; their sum is 8.
    ledger = ledger_of()
    np.testing.assert_allclose(ledger.shares(), [[75.0, 50.0], [-25.0, 0.0]])
    assert ledger.top(3).rows == (
        ("down_0/conv/kernel", 0, 6.0, 75.0), ("input", 0, 4.0, 50.0),
        ("down_0/conv/kernel", 1, -2.0, -25.0),
    )  # fmt: skip
    assert ledger.by_step().rows == ((0, 10.0, 125.0), (1, -2.0, -25.0))
    tied = {("down_0/conv/kernel", 4.0, 50.0), ("input", 4.0, 50.0)}
    assert set(ledger.by_site().rows) == tied
    assert {row[0] for row in ledger.by_block().rows} == {"down_0", "input"}


def test_a_ledger_states_quantity_signs_and_defect():
    text = words(ledger_of())
    assert "parts of the mean squared error of the final sample" in text
    assert "positive raises it" in text
    assert "median 0 %" in text
    assert "change of the functional" in words(ledger_of((5.0, 15.0)))  # no squared error
    assert "forecast" in words(ledger_of(None))


def test_a_data_frame_has_a_row_for_each_cell():
    pytest.importorskip("pandas")
    frame = ledger_of().to_dataframe()
    assert list(frame.columns) == ["site", "step", "contribution", "share, %"]
    assert frame.loc[(frame.site == "input") & (frame.step == 0), "contribution"].item() == 4.0
    assert list(made_up.study().to_dataframe().error_rms) == list(made_up.study().error_rms)
    assert Recipe({"a": SiteBits(4, None)}).to_dataframe().weight.item() == 4


def test_a_defect_above_five_percent_warns_and_says_what_to_do(recwarn):
    warn_of_defect(ledger_of())
    warn_of_defect(ledger_of(None))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"20 %.*num_nodes"):
        warn_of_defect(ledger_of((5.0, 15.0)))


def test_a_ledger_prints_under_tracing_and_as_shapes():
    printed = []

    @jax.jit
    def read(ledger):
        printed.append(str(ledger))
        return ledger

    read(ledger_of())
    printed.append(str(jax.eval_shape(read, ledger_of())))
    assert all("without numbers" in text and "(2, 2)" in text for text in printed)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.eval_shape(read, ledger_of()).top()


@pytest.mark.parametrize(
    ("site", "depth", "block"),
    [("input", 1, "input"), ("conv_in/kernel#2", 1, "conv_in"), ("a/b/c/kernel", 2, "a/b"),
     ("layers/mlp/kernel[3]", 1, "layers[3]"), ("dot_0", 1, "dot_0")],
)  # fmt: skip
def test_the_block_of_a_site_is_the_head_of_its_path(site, depth, block):
    assert block_name(site, depth) == block


def test_top_cells_of_a_ledger_worked_by_hand():
    # Steps 0-1, 2-3 and 4 are the three ranges; the entries sum to 20.
    ledger = [[1, 2], [1, -3], [4, 0], [4, 0], [1, 10]]
    cells = top_cells(ledger, ["a", "b"], num=6, num_ranges=3)
    assert cells == [
        ("b", 4, 4, 50.0), ("a", 2, 3, 40.0), ("a", 0, 1, 10.0), ("a", 4, 4, 5.0),
        ("b", 2, 3, 0.0), ("b", 0, 1, -5.0),
    ]  # fmt: skip
    assert top_cells(ledger, ["a", "b"], num=2, num_ranges=3) == cells[:2]


def test_shares_of_all_cells_sum_to_100_percent():
    ledger = np.random.default_rng(0).normal(1.0, 1.0, (7, 4))
    cells = top_cells(ledger, "abcd", num=100)
    assert len(cells) == 5 * 4
    assert sum(c.share for c in cells) == pytest.approx(100.0)


def test_fewer_steps_than_ranges_make_fewer_ranges():
    assert top_cells([[3.0], [1.0]], ["a"]) == [("a", 0, 0, 75.0), ("a", 1, 1, 25.0)]


def test_a_ledger_that_does_not_fit_its_sites_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*expected \[steps, 2\]"):
        top_cells(np.ones((2, 3)), ["a", "b"])


def test_sites_are_listed_with_operands_counts_remarks_and_what_is_out_of_reach():
    def fn(params, x, t):
        x = jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: x @ params["hidden"], x)
        return x @ params["w"] @ np.eye(3)

    params = {"w": jnp.ones((2, 3)), "hidden": jnp.eye(2)}
    args = params, jnp.ones((1, 2)), jnp.float32(0)
    text = words(list_sites(fn, *args))
    assert "w dot 1x2, 2x3* 6 6" in text
    assert "constant" in text
    assert "Out of reach of every rule: while hides dot_general at test_reports.py:" in text


def test_a_recipe_prints_its_widths_and_a_traced_one_question_marks():
    bits = {"a": SiteBits(4, 8), "b": SiteBits(None, 8), "c": SiteBits(4, 8)}
    assert "a 4 8 b - 8 c 4 8" in words(Recipe(bits))
    assert "W4A8: 2 sites, A8: 1" in words(Recipe(bits))
    printed = []
    jax.jit(lambda b: printed.append(str(Recipe({"a": SiteBits(b, None)}))) or b)(4)
    assert "a ? -" in words(printed[0])


@pytest.fixture(scope="module")
def calibration():
    eps_fn = lambda params, x, t: x @ params["in"] @ params["out"]  # noqa: E731
    params = {"in": jnp.eye(2, 3, dtype=jnp.float32), "out": jnp.ones((3, 2), jnp.float32)}
    denoiser = Denoiser(eps_fn, params, diffusion.linear(), (2,))
    steps = diffusion.ddim(denoiser.schedule, 2)
    return precision.calibrate(denoiser, steps, jax.random.key(0), num_samples=2)


def test_a_calibration_prints_the_widest_range_of_each_activation(calibration):
    low, high = calibration.ranges["in"][0]
    text = words(calibration)
    assert f"in dot 6 6 {number(float(low.min()))} .. {number(float(high.max()))}" in text


def test_tables_count_tied_weights_once_and_slices_of_one_parameter_each():
    def eps_fn(params, x, t):
        q, k = jnp.split(params["qk"], 2, 1)
        return x @ params["tied"] @ params["tied"] + x @ q @ k

    params = {"tied": jnp.eye(2, dtype=jnp.float32), "qk": jnp.ones((2, 4), jnp.float32)}
    denoiser = Denoiser(eps_fn, params, diffusion.linear(), (2,))
    assert "12 weights" in words(denoiser.sites())
    sites = ("tied", "tied#2", "qk", "qk#2")
    steps = diffusion.ddim(denoiser.schedule, 2)
    calibration = precision.calibrate(denoiser, steps, jax.random.key(0), num_samples=2)
    q = precision.quantize(calibration, "W8", sites=sites)
    assert "12 quantized, 1.20e-05 MB at their widths, 4.80e-05 MB in float32" in words(q)


@pytest.mark.parametrize("kind", ["quantize", "lower"])
def test_a_quantized_denoiser_says_widths_what_is_left_out_and_how_it_rounds(calibration, kind):
    recipe = Recipe({"in": SiteBits(4, 8), "output": SiteBits(None, 8)})
    q = getattr(precision, kind)(calibration, recipe)
    text = words(q)
    assert "W4A8: 1 sites, A8: 1" in text
    assert "2 of 4 sites: input, out" in text
    assert "6 quantized, 3.00e-06 MB at their widths, 2.40e-05 MB in float32" in text
    assert "2 static, one scale with zero point, rounded to nearest" in text
    printed = []
    jax.jit(lambda q: printed.append(str(q)) or 0)(q)
    assert "W?A?" in printed[0]


def test_a_study_fits_80_columns_and_names_its_tightest_valid_bound():
    lines = str(made_up.study()).splitlines()
    assert max(map(len, lines)) <= 80
    text = words(made_up.study())
    assert "bound / error 2 2 at least first order + remainder" in text
    assert "Grönwall 20 20 yes" in text
    assert "NO BOUND HOLDS" not in text


def test_bounds_that_fail_shout_and_are_not_the_tightest():
    assert "bound / error 5 5 at least Grönwall" in words(made_up.study(0.5))
    assert "first order + remainder 0.5 0.5 NO" in words(made_up.study(0.5))
    assert "NO BOUND HOLDS" in words(made_up.study(0.01))


def test_a_study_that_is_saved_and_loaded_prints_the_same(tmp_path):
    study = made_up.study()
    study.save(tmp_path)
    loaded = studies.Study.load(tmp_path)
    assert str(loaded) == str(study)
    assert loaded.ledger.contributions.keys() == study.ledger.contributions.keys()
    np.testing.assert_array_equal(loaded.samples, study.samples)
    (row,) = results.load(tmp_path)[2]
    assert row["bound"] == "first order + remainder"
    assert row["measured_rmse_low"] == 0.4
    with pytest.raises(FileNotFoundError, match=r"Study\.save"):
        studies.Study.load(tmp_path / "none")
