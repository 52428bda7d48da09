"""Run the experiment: `python -m experiments.clipping`."""

from experiments.clipping.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
