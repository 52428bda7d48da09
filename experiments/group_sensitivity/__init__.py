"""Experiment `group_sensitivity`: see `experiment`."""
