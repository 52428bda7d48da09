"""Precision chosen for each sample at each step, beside what is chosen beforehand."""
