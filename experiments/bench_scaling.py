"""`python -m experiments.bench_scaling` runs `experiments.bench.scaling`."""

from experiments.harness.command import forward

forward(__spec__)
