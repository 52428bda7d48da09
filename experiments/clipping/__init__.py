"""Experiment `clipping`: see `experiment`."""
