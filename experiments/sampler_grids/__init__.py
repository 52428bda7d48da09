"""Experiment `sampler_grids`: see `experiment`."""
