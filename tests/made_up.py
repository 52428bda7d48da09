"""A study with made-up numbers: what reads studies is tested without running a network."""

import jax.numpy as jnp
import numpy as np

from qdiffjax import studies
from qdiffjax.analysis.errors import Ledger
from qdiffjax.comparisons import Bounded
from qdiffjax.estimates import Estimate

SITES = ("input", "down_0/conv/kernel", "down_0/mlp/kernel[1]", "output")
NUM_STEPS, NUM_SAMPLES = 6, 3


def ledger() -> Ledger:
    """Entries that are half an integer each; their sum is the squared error of each sample."""
    table = np.random.default_rng(0).integers(-2, 9, (NUM_SAMPLES, NUM_STEPS, len(SITES))) / 2
    change = table.sum((1, 2))
    x_hat = np.broadcast_to(np.sqrt(change)[:, None], (NUM_SAMPLES, 4))
    columns = {name: jnp.asarray(table[..., i]) for i, name in enumerate(SITES)}
    return Ledger(columns, jnp.asarray(change), jnp.zeros((NUM_SAMPLES, 4)), jnp.asarray(x_hat))


def study(looseness: float = 2.0) -> studies.Study:
    """A study whose remainder bound is this many times the error, and Grönwall's ten times that."""
    growth = np.linspace(0.0, 1.0, NUM_STEPS + 1)
    norms = np.outer(growth, np.arange(1.0, 3.0))
    bounded = Bounded(norms, norms[1:], 10 * looseness * norms, looseness * norms, np.full(2, 0.25))
    estimate = Estimate(*map(np.float64, (0.5, 0.4, 0.6)))
    rng = np.random.default_rng(1)
    return studies.Study(
        name="W4A8", settings={"num_steps": NUM_STEPS, "num_samples": NUM_SAMPLES},
        t=np.linspace(1, 0, NUM_STEPS), sites=SITES, signal_rms=np.ones(NUM_STEPS + 1),
        error_rms=growth, predicted_rms=1.1 * growth, first_order_rms=1.2 * growth,
        measured=estimate, predicted_over_measured=estimate, first_order_miss=0.25,
        bounds=studies.bound_rows(bounded), bounded=bounded, ledger=ledger(), w2=(1.0, 2.0),
        path_kl=None, samples=rng.normal(size=(2, 4)), samples_hat=rng.normal(size=(2, 4)),
        cost={"runs": 1.5, "ledger": 20.0},
    )  # fmt: skip
