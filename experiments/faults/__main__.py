"""Run the experiment: `python -m experiments.faults`."""

from experiments.faults.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
