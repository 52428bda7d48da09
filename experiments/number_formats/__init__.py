"""Experiment `number_formats`: see `experiment`."""
