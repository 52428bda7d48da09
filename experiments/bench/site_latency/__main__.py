"""Run the experiment: `python -m experiments.bench.site_latency`."""

from experiments.bench.site_latency.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
