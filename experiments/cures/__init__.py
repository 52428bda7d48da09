"""Cures of post-training quantization, side by side on the same networks and noises."""
