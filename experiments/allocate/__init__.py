"""Bits where they matter: recipes within a budget, from errors of sites that add as vectors."""
