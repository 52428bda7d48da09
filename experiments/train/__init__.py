"""Experiment `train`: see `experiment`."""
