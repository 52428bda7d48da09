"""How to choose a recipe: where bits matter.

allocation  bits by water-filling and Lagrange multipliers; one of several choices for each item,
            within a budget, with the bound that says how far from the best it is
"""

from qdiffjax.strategies.allocation import (
    Allocation,
    Relaxed,
    WaterFilling,
    choose,
    lagrangian_bits,
    relaxed_choice,
    reverse_water_filling,
)
