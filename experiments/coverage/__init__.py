"""Experiment `coverage`: see `experiment`."""
