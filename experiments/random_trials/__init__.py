"""Experiment `random_trials`: see `experiment`."""
