"""`python -m experiments.bench_networks` runs `experiments.bench.networks`."""

from experiments.harness.command import forward

forward(__spec__)
