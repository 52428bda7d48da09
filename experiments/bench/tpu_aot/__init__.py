"""Benchmark `tpu_aot`: see its `experiment`."""
