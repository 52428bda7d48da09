"""How good a quantized model is, by every metric, and how sure one can be."""
