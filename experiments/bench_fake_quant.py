"""`python -m experiments.bench_fake_quant` runs `experiments.bench.fake_quant`."""

from experiments.harness.command import forward

forward(__spec__)
