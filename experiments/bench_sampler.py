"""`python -m experiments.bench_sampler` runs `experiments.bench.sampler`."""

from experiments.harness.command import forward

forward(__spec__)
