"""Run the experiment: `python -m experiments.allocate`."""

from experiments.allocate.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
