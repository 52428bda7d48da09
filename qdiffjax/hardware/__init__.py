"""What a recipe costs on a machine: bytes, operations, time, energy; before it runs, and after.

    sites ── count ──> Counts ─┬─ weight_bytes, bops, ...  bytes M(b), operations C(b)  counted
    recipe ── widths ─> Widths ┼─ predict_times            seconds T(b) on a Chip       predicted
           └─ times_on_chips   │  the same with conversions, on the path a chip falls back to
                               └─ predict_energy           joules of a stated model     predicted
    a function ─┬─ compiled_cost             operations and memory, to the compiler     compiled
                └─ measure, measured_energy  seconds, bytes, joules                     measured

Counted and predicted costs are functions of arrays of widths, which broadcast and may be traced:
what an allocation of bits minimizes. Every result says its `kind`.
"""

from qdiffjax.hardware.chips import (
    CHIPS,
    FLOAT,
    INTEGER,
    Chip,
    check_full,
    find_chip,
    multiplied_as,
    rate_table,
)
from qdiffjax.hardware.compiled import CompiledCost, compiled_cost, read_cost
from qdiffjax.hardware.costs import (
    Counts,
    Widths,
    activation_bytes,
    bops,
    count,
    model_bytes,
    other_elements,
    output_bytes,
    traffic,
    uniform,
    weight_bytes,
    widths,
    working_set,
)
from qdiffjax.hardware.energy import (
    HBM,
    HOROWITZ,
    Energy,
    EnergyModel,
    MeasuredEnergy,
    measured_energy,
    predict_energy,
)
from qdiffjax.hardware.execution import (
    OTHER,
    ChipTimes,
    Execution,
    family_of,
    run_as,
    site_seconds,
    times_on_chips,
)
from qdiffjax.hardware.measured import Measured, measure, median_interval
from qdiffjax.hardware.roofline import Roofline, predict_times
from qdiffjax.labels import Kind
