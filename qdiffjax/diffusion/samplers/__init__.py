"""Samplers as tables of coefficients."""
