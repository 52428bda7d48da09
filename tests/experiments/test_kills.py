"""Runs that are killed leave nothing mixed, lose nothing that was finished, and go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl")
KILLS = os.environ.get("QDIFFJAX_KILLS", "")  # of miniatures of real experiments: 100 take an hour


@pytest.mark.slow
def test_runs_that_are_killed_mix_nothing_lose_nothing_and_end_as_undisturbed_ones(tmp_path):
    runs = ("--kills", KILLS) if KILLS else ("--kills", "40", "--runs", "pretended")
    words = [sys.executable, "-m", "tests.experiments.killing", *runs, "--folder", str(tmp_path)]
    run = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split(" ", 1) for line in run.stdout.splitlines()]
    assert lines
    for name, text in lines:
        counts = json.loads(text)
        for wrong in ("mixed", "lost", "damaged", "hung", "wrong codes"):
            assert counts[wrong] == 0, (name, counts)
        assert counts["kills"] + counts["interrupts"] >= (int(KILLS or 40) // len(lines))
