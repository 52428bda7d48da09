"""What quantization costs the law: estimators on known laws, and a miniature run."""

import dataclasses
import io
from contextlib import redirect_stdout

import jax
import numpy as np
import pytest

from experiments.divergence_vs_bits import experiment
from experiments.divergence_vs_bits import measure as parts
from experiments.harness import command, store
from tests import worlds

CONFIG = experiment.Config()
NET = worlds.TINY_DIT


def test_the_tail_of_equal_errors_is_even_and_one_large_error_carries_all():
    even = parts.tails(np.ones(40))
    assert even == {"error_rms": 1, "error_median": 1, "worst_share": pytest.approx(0.05)}
    assert parts.tails(np.r_[np.zeros(39), 3.0])["worst_share"] == 1


def test_principal_frames_are_the_axes_of_an_axis_parallel_law():
    x = np.diag([1, 9, 3, 0.2, 27])
    found = parts.frames(np.concatenate([x, -x]) + 5)
    for k, axes in ((1, [4]), (2, [4, 1]), (4, [4, 1, 2, 0])):
        np.testing.assert_allclose(np.abs(found[f"principal {k}"]), np.eye(5)[axes], atol=1e-12)


def test_a_translation_has_the_projected_kl_of_its_part_in_the_frame():
    """KL(N(0, I) || N(m, I)) = |A m|^2 / 2 seen through an orthonormal A."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 2000, 3)) + np.array([0, 1, 0])[None, None] * np.array([0, 1])[
        :, None, None]  # fmt: skip
    config = dataclasses.replace(CONFIG, num_resamples=20)
    found = parts.projected(x, y, {"along": np.eye(3)[1:2], "across": np.eye(3)[::2]}, config,
                            jax.random.key(0))  # fmt: skip
    for name, truth in (("along", 0.5), ("across", 0.0)):
        for value, low, high in found[name].values():
            assert value == pytest.approx(truth, abs=0.1)
            assert low < high


def flags(tmp_path):
    return [
        "--checkpoint", str(worlds.save_tiny(tmp_path / "net", NET)), "--output",
        str(tmp_path / "out"), "--num-steps", "3", "--num-samples", "32", "--num-chosen", "16",
        "--num-kl-samples", "4", "--num-fan-samples", "2", "--num-resamples", "4", "--bits", "8",
        "3", "--sites", "*attention*",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_miniature_run_obeys_the_inequalities_between_its_numbers(tmp_path):
    with redirect_stdout(io.StringIO()) as printed:
        assert command.main(experiment.EXPERIMENT, flags(tmp_path)) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    assert (tmp_path / "out" / "divergences.png").stat().st_size > 10_000
    assert "error share first, last" in " ".join(printed.getvalue().split())
    floor, fine, coarse = rows
    for row in (fine, coarse):
        assert row["sliced"][0] <= row["w2_upper"][0] * (1 + 1e-5)
        assert row["w2_lower"][0] <= row["w2_upper"][0] * (1 + 1e-5)
        # Paired noise resolves what two independent halves cannot.
        assert row["w2_upper"][0] < floor["w2_lower"][0]
        name = f"W{row['bits']}A{row['bits']}"
        terms, profile = arrays[f"{name}/kl_terms"], arrays[f"{name}/error_profile"]
        assert terms[-1] == 0  # the last step has no noise
        assert terms.sum() == pytest.approx(row["path_kl"][0], rel=1e-5)
        assert profile.sum() > 0
        assert arrays[f"{name}/errors"].shape == (64,)
    for key in ("path_kl", "girsanov_kl", "w2_upper"):
        assert coarse[key][0] > 4 * fine[key][0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": (8, 0)}, "got 0 bits"),
        ({"num_steps": 2}, "got num_steps = 2, expected at least 3"),
        ({"num_samples": 31}, "num_samples = 31"),
        ({"num_kl_samples": 257}, "got 257 samples .*no more than num_samples = 256"),
    ],
)
def test_what_cannot_be_run_is_refused_first(change, message):
    with pytest.raises(ValueError, match=message):
        command.check(dataclasses.replace(CONFIG, **change))
