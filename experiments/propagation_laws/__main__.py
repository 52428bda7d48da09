"""Run the experiment: `python -m experiments.propagation_laws`."""

from experiments.harness.command import main
from experiments.propagation_laws.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
