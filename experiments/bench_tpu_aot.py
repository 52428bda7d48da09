"""`python -m experiments.bench_tpu_aot` runs `experiments.bench.tpu_aot`."""

from experiments.harness.command import forward

forward(__spec__)
