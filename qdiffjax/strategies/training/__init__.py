"""Quantization-aware training: what rounds is learned while it rounds.

values      what may be learned of a quantized denoiser: weights, steps, clips, levels, low rank
objectives  what for: a float teacher along the own run, the same weighted by gains, data
cures       `qat`, the cure; float training is `qdiffjax.training`, which does the loop
"""
