"""Experiment `divergence_vs_bits`: see `experiment`."""
