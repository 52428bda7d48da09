"""Run the experiment: `python -m experiments.hardware_cost`."""

from experiments.hardware_cost.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
