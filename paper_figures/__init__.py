"""The figures, drawn from saved results by `python -m paper_figures`. Needs no JAX."""
