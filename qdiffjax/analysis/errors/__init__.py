"""Errors of a quantized run: what is committed, how it travels, what it comes to."""
