"""Run the experiment: `python -m experiments.bench.tpu_aot`."""

from experiments.bench.tpu_aot.experiment import EXPERIMENT
from experiments.harness.command import main

raise SystemExit(main(EXPERIMENT))
