"""Run the experiment: `python -m experiments.schedules`."""

from experiments.harness.command import main
from experiments.schedules.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
