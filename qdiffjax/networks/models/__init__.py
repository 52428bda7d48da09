"""Denoising networks in plain Flax, without a word of quantization."""
