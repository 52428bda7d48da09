"""Quantization error of a sampler: where it arises, how it travels, what bounds it.

errors         two runs on one noise, local errors, their propagation, prediction and attribution
gains          what steps, samplers and flows multiply errors by
bounds         along the run, checked against measurement; between laws
divergences    KL, W2 and MMD with their uncertainty
guarantees     of the next random sample, of means and of chosen recipes, at finite n
certificates   valid for sets of inputs and every rounding outcome, of small networks
"""
