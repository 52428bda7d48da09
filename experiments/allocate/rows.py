"""Kinds of rows of `experiments.allocate`, and the fields of an estimate."""

BUDGET, FORECAST = "budget", "forecast"
BASELINES, FEWER, CHIPS, SHAPES = "baselines", "fewer", "chips", "shapes"


def named(name: str, estimate) -> dict[str, float]:
    """Return a value and the ends of its interval as fields of a row."""
    value, low, high = map(float, estimate)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
