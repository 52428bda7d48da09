"""`python -m experiments.bench_kernels` runs `experiments.bench.kernels`."""

from experiments.harness.command import forward

forward(__spec__)
