"""Run the experiment: `python -m experiments.number_formats`."""

from experiments.harness.command import main
from experiments.number_formats.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
