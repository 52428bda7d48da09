"""Run the experiment: `python -m experiments.coverage`."""

from experiments.coverage.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
