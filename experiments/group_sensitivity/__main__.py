"""Run the experiment: `python -m experiments.group_sensitivity`."""

from experiments.group_sensitivity.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
