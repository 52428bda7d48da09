"""What widths by step of the sampler can gain, and what they do."""
