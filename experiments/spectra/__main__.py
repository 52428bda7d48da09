"""Run the experiment: `python -m experiments.spectra`."""

from experiments.harness.command import main
from experiments.spectra.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
