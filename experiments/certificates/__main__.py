"""Run the experiment: `python -m experiments.certificates`."""

from experiments.certificates.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
