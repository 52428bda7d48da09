"""How to choose a precision: calibration after training, and what builds on it."""
