"""Experiment `propagation_laws`: see `experiment`."""
