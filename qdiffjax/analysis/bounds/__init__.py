"""Bounds of the error along a run and in law, checked against measurement."""
