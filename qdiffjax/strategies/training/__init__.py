"""Quantization-aware training: what rounds is learned while it rounds.

values      what may be learned of a quantized denoiser: weights, steps, clips, levels, low rank
objectives  what for: a float teacher along the own run, the same weighted by gains, data
loop        the training itself, by the loop of float training, `qdiffjax.training`
cures       `qat`
widths      `learned_widths`, bits of weights within a budget
"""
