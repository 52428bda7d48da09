"""Experiment `error_bounds`: see `experiment`."""
