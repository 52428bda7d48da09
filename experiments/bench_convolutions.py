"""`python -m experiments.bench_convolutions` runs `experiments.bench.convolutions`."""

from experiments.harness.command import forward

forward(__spec__)
