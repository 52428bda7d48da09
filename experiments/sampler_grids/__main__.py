"""Run the experiment: `python -m experiments.sampler_grids`."""

from experiments.harness.command import main
from experiments.sampler_grids.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
