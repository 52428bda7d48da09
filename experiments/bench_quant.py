"""`python -m experiments.bench_quant` runs `experiments.bench.quant`."""

from experiments.harness.command import forward

forward(__spec__)
