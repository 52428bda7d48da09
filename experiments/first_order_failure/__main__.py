"""Run the experiment: `python -m experiments.first_order_failure`."""

from experiments.first_order_failure.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
