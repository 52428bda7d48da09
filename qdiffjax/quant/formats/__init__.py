"""Experiment `formats`: see `experiment`."""
