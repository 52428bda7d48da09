"""Experiment `hardware_cost`: see `experiment`."""
