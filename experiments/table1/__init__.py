"""The survey's Table 1, its adjectives replaced by what was measured."""
