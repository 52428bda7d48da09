"""Run the experiment: `python -m experiments.training_aware`."""

from experiments.harness.command import main
from experiments.training_aware.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
