"""Run the experiment: `python -m experiments.feedback`."""

from experiments.feedback.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
