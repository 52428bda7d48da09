"""Run the experiment: `python -m experiments.shaping_forecast`."""

from experiments.harness.command import main
from experiments.shaping_forecast.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
