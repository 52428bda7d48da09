"""Benchmarks: what low precision costs and saves, beside the float model and a peer."""
