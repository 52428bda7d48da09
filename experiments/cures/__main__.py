"""Run the experiment: `python -m experiments.cures`."""

from experiments.cures.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
