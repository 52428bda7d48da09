"""`python -m experiments.bench_gpu_aot` runs `experiments.bench.gpu_aot`."""

from experiments.harness.command import forward

forward(__spec__)
