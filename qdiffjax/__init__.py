"""Quantization error in diffusion models: measured, predicted and bounded."""
