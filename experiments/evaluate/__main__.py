"""Run the experiment: `python -m experiments.evaluate`."""

from experiments.evaluate.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
