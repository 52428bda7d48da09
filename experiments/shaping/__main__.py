"""Run the experiment: `python -m experiments.shaping`."""

from experiments.harness.command import main
from experiments.shaping.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
