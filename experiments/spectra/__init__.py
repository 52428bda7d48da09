"""Experiment `spectra`: see `experiment`."""
