"""The error of shaped weights by the number of steps, beside its forecast."""
