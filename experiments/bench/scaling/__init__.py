"""Benchmark `scaling`: see its `experiment`."""
