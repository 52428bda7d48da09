"""Run the experiment: `python -m experiments.table1`."""

from experiments.harness.command import main
from experiments.table1.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
