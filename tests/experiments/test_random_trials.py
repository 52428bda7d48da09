"""The experiment that tries the bounds on random worlds."""

import numpy as np
import pytest

from experiments.harness import command, store
from experiments.random_trials import draws
from experiments.random_trials import experiment as random_trials


def test_a_violation_is_counted_and_rounding_is_not():
    """Bounds 1 of what is 1, just above 1 by rounding, 1.1, and nothing."""
    measured = np.array([[[1.0, 1 + 1e-12, 1.1, 1e-20]]])
    tally = random_trials.tally(measured, np.ones((1, 1, 4)), np.full((1, 1, 1), 1e-12))
    assert (tally.comparisons, tally.violations) == (3, 1)


def test_infinite_bounds_are_not_counted_and_inapplicable_ones_not_even_as_infinite():
    bound = np.array([[[np.inf, np.nan, 2.0]]])
    tally = random_trials.tally(np.ones((1, 1, 3)), bound, np.zeros((1, 1, 1)))
    row = random_trials.row("Gronwall, 9 nodes", [tally])
    assert row["comparisons"] == 1
    assert row["finite"] == 0.5
    assert row["ratio_median"] == 2.0


def test_every_schedule_sampler_and_format_is_drawn():
    rng = np.random.default_rng(0)
    worlds = [draws.draw(rng, family) for family in ("network", "data") for _ in range(150)]
    worlds += [draws.draw(rng, "multistep") for _ in range(3)]
    names = np.stack([w.names for w in worlds])
    for column, every in enumerate((draws.DATA, draws.SCHEDULES, draws.SAMPLERS)):
        assert set(names[:, column]) == set(range(len(every)))
    assert {int(w.format) for w in worlds} == set(range(len(draws.FORMATS)))
    assert all(np.isfinite(w.coeffs.x).all() and np.all(w.levels.sigma > 0) for w in worlds)


@pytest.mark.slow
def test_a_miniature_run_counts_every_bound_and_finds_none_violated(tmp_path, capsys):
    numbers = {"network": 12, "data": 0, "multistep": 0, "gaussian": 24}
    flags = [f for name, n in numbers.items() for f in (f"--num-{name}", str(n))]
    argv = [*flags, "--chunk", "12", "--num-samples", "3", "--output", str(tmp_path)]
    assert command.main(random_trials.EXPERIMENT, argv) == 0
    _, arrays, rows = store.load(tmp_path)
    assert arrays["trials"].shape == (12, 4)
    by_name = {r["bound"]: r for r in rows}
    assert by_name["Gronwall, every x"]["comparisons"] == 12 * 3 * (draws.NUM_STEPS - 1)
    assert by_name["path KL"]["comparisons"] == 24
    assert sum(r["violations"] for r in rows if r["guaranteed"]) == 0
    assert all(r["finite"] == 1 and r["assumption"] for r in rows)
    assert set(by_name) <= set(random_trials.TABLE)
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in by_name)


@pytest.mark.parametrize("flags", [["--num-samples", "1"], ["--num-data", "-1"]])
def test_impossible_flags_are_refused_before_any_work(flags, tmp_path, capsys):
    idle = random_trials.EXPERIMENT._replace(measure=lambda *a, **k: pytest.fail("work began"))
    assert command.main(idle, [*flags, "--output", str(tmp_path)]) == 2
    assert "expected" in capsys.readouterr().err
