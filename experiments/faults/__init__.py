"""Whether faults of quantized networks are told from rounding, and where they are looked for."""
