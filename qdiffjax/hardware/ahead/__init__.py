"""Compilation for chips that are not there."""
