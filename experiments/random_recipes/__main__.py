"""Run the experiment: `python -m experiments.random_recipes`."""

from experiments.harness.command import main
from experiments.random_recipes.experiment import EXPERIMENT

raise SystemExit(main(EXPERIMENT))
