"""Benchmark `sampler`: see its `experiment`."""
