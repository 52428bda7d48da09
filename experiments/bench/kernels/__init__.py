"""Benchmark `kernels`: see its `experiment`."""
