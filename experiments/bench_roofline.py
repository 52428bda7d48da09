"""`python -m experiments.bench_roofline` runs `experiments.bench.roofline`."""

from experiments.harness.command import forward

forward(__spec__)
