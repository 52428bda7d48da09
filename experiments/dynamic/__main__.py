"""Run the experiment: `python -m experiments.dynamic`."""

from experiments.dynamic.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
