"""The experiment on spectra: its summary on made-up numbers, and a miniature run."""

import dataclasses
import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from experiments.harness import command, store
from experiments.spectra import experiment as spectra
from experiments.spectra.measure import summary
from tests import worlds

CONFIG = spectra.Config()
NET = worlds.TINY_DIT


def test_a_sampler_that_multiplies_by_its_gains_has_the_product_as_its_gain():
    gains = np.array([2.0, 0.5, 3.0])
    rest = np.array([3.0, 1.5, 3.0, 1.0])
    rows = summary({
        "t": np.array([3.0, 2.0, 1.0]), "step_values": np.tile(gains[:, None, None], (1, 4, 1)),
        "starts": np.array([0, 1]), "sampler_values": np.tile(rest[:2, None, None], (1, 4, 1)),
        "rms_gains": rest[:, None] * np.array([1.0, 1.0, 1.0, 0.9]),
        "log_norms": np.tile(np.log(gains)[None, :, None], (2, 1, 4)),
        "log_volumes": np.tile(np.log(gains)[:, None], (1, 4)),
        "stretches": np.tile(np.cumsum([0, *np.log(gains)])[:, None, None], (1, 4, 1)),
        "errors": np.arange(1.0, 5.0), "size": np.array(1),
    })  # fmt: skip
    starts = [r for r in rows if r["kind"] == "start"]
    for row in starts:
        for key in ("top_gain", "product", "gronwall"):
            np.testing.assert_allclose(row[key], rest[row["step"]])
    assert [r["amplified"] for r in rows[:3]] == [1, 0, 1]
    whole = rows[-1]
    assert whole["log_volume"] == pytest.approx(np.log(3.0))
    np.testing.assert_allclose(whole["frame_exponents"], np.log(3.0) / 3)
    np.testing.assert_allclose(whole["top_exponent"], np.log(3.0) / 3)
    assert (whole["ever_above_one"], whole["largest_rms_gain"]) == (1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 1}, "got num_steps = 1, expected at least 2"),
        ({"num_gain_samples": 7}, "got 7 samples of the gains"),
        ({"num_shown": 9}, "got 9 values kept of 8"),
        ({"num_starts": 21}, "got 21 starts"),
        ({"bits": 17}, "got 17 bits"),
    ],
)
def test_what_cannot_be_run_is_refused_first(change, message):
    with pytest.raises(ValueError, match=message):
        command.check(dataclasses.replace(CONFIG, **change))


@pytest.mark.slow
def test_in_a_miniature_run_the_parts_agree_with_each_other(tmp_path):
    flags = [
        "--checkpoint", str(worlds.save_tiny(tmp_path / "net", NET)), "--output",
        str(tmp_path / "out"), "--num-steps", "2", "--num-samples", "2", "--num-gain-samples", "3",
        "--num-values", "12",
        "--num-shown", "2", "--num-nodes", "4", "--num-probes", "2", "--num-starts", "2",
        "--sites", "*attention*",
    ]  # fmt: skip
    with redirect_stdout(io.StringIO()) as printed:
        assert command.main(spectra.EXPERIMENT, flags) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    assert (tmp_path / "out" / "spectra.png").stat().st_size > 10_000
    assert "log volume per dimension" in printed.getvalue()
    top, whole = arrays["step_values"][..., 0], arrays["sampler_values"][..., 0]
    np.testing.assert_allclose(arrays["rms_gains"][-1], 1, rtol=1e-6)
    assert np.all(arrays["rms_gains"][0, :2] <= whole[0] * 1.001)  # the mean is below the largest
    assert np.all(whole[0] <= top.prod(axis=0) * 1.001)  # norms are submultiplicative
    # The last step alone: two ways to its largest singular value.
    np.testing.assert_allclose(whole[1], top[1], rtol=1e-2)
    assert np.all(arrays["log_volumes"] <= np.log(top) + 1e-4)
    assert np.all(arrays["stretches"][-1, :, 0] <= np.log(top).sum(axis=0) + 1e-4)
    assert np.all(arrays["errors"] > 0)
    assert [r["kind"] for r in rows] == ["step"] * 2 + ["start"] * 2 + ["whole"]
