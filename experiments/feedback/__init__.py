"""Activations rounded with error feedback along the sampler: errors, forecasts, where it pays."""
