"""Benchmark `site_latency`: see its `experiment`."""
