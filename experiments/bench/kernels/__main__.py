"""Run the experiment: `python -m experiments.bench.kernels`."""

from experiments.bench.kernels.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
