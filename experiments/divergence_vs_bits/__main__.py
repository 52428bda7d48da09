"""Run the experiment: `python -m experiments.divergence_vs_bits`."""

from experiments.divergence_vs_bits.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
