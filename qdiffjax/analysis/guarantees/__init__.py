"""What is guaranteed of samples on fresh noise, whatever the network: finite samples, no model.

Samplers start from independent draws, so their errors on fresh noise are exchangeable, and the
statements below hold exactly. *Noise that calibrated or chose anything may not be scored*: ranges
found on a noise never clip it, so that its scores are too small (`precision.NoiseMarks`). Nothing
is said of noise or conditions that are drawn in another way, of a seed that was chosen, or of many
next samples at once. NumPy, float64; scores are [num, *shape], independent along the first axis.

conformal   what the next random sample's score does not exceed
means       what the mean of a bounded score does not exceed, hence W2 of clipped samples
choices     p-values of promises, and which recipes of a fixed order keep theirs
"""

from qdiffjax.analysis.guarantees.choices import (
    FixedSequence,
    betting_p_value,
    fixed_sequence,
    hoeffding_bentkus_p_value,
    share_p_value,
)
from qdiffjax.analysis.guarantees.conformal import Conformal, conformal_bound, samples_needed
from qdiffjax.analysis.guarantees.means import (
    bernstein_upper,
    betting_upper,
    log_wealth,
    mean_bounds,
    mean_floor,
    samples_for_mean,
)
