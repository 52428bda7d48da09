"""Experiment `certificates`: see `experiment`."""
