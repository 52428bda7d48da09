"""Run the experiment: `python -m experiments.random_trials`."""

from experiments.harness.command import main
from experiments.random_trials.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
