"""`python -m experiments.bench_dit_xl` runs `experiments.bench.dit_xl`."""

from experiments.harness.command import forward

forward(__spec__)
