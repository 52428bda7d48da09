"""Run the experiment: `python -m experiments.error_bounds`."""

from experiments.error_bounds.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
