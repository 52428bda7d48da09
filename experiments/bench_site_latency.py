"""`python -m experiments.bench_site_latency` runs `experiments.bench.site_latency`."""

from experiments.harness.command import forward

forward(__spec__)
