"""Experiment `program`: see `experiment`."""
