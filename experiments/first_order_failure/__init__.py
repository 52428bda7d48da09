"""Experiment `first_order_failure`: see `experiment`."""
