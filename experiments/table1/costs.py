"""What a recipe with cures stores, computes and takes on two chips, by the models of `hardware`."""

import dataclasses

import numpy as np

from qdiffjax import hardware, precision, strategies
from qdiffjax.precision import Recipe, Switch, words
from qdiffjax.precision.settings import mapped
from qdiffjax.strategies import bases

CHIPS = ("v5e", "H200")


def recipe_of(draft: strategies.Draft, sites) -> Recipe:
    """Return the widths of a draft; sites that a cure leaves in full precision have none."""
    given = draft.recipe
    table = given if isinstance(given, Recipe) else words.recipe_of(
        given, draft.calibration.sites, sites
    )  # fmt: skip
    kept = lambda bits: {n: b for n, b in bits.items() if n not in draft.plain}  # noqa: E731
    return dataclasses.replace(mapped(table, kept), ranges=None)


def row(draft: strategies.Draft, sites, num_steps: int) -> dict:
    """Return bits and bytes of the model and, a mean over calls, what a call costs.

    bits: of a weight that the recipe rounds, in a product, on average; stored: what is kept of it,
    scales too, once for each width that it has along the steps, and in full where it is shaped.
    What is cached by step is not computed.
    """
    denoiser = draft.calibration.denoiser
    counts = hardware.count(denoiser.sites())
    recipe = recipe_of(draft, sites)
    tables = [recipe.at(step) for step in range(num_steps)]
    widths = [hardware.widths(counts, Recipe(table)) for table in tables]
    chips = [next(c for c in hardware.CHIPS if name in c.name) for name in CHIPS]
    other = hardware.other_elements(denoiser.params, counts)
    is_run = ~np.isin(counts.names, sorted(draft.plain))
    is_rounded = np.isin(counts.names, draft.rounds_weight())
    sizes = counts.stored * is_rounded
    num = int(sizes.sum())
    stored = _stored(draft, recipe, counts, sizes)
    rest = int(np.sum(counts.stored)) - num + other
    computed = sizes * is_run
    bops = [(hardware.bops(counts, w) * is_run).sum() for w in widths]
    return {
        "bits": float(np.mean([(w.weight * computed).sum() for w in widths])) / computed.sum(),
        "stored": stored, "megabytes": (stored * num / 8 + 4 * rest) / 1e6,
        "gigabops": float(np.mean(bops)) / 1e9,
        "seconds_of_chips": [
            float(np.mean([(hardware.predict_times(counts, w, chip).seconds * is_run).sum()
                           for w in widths]))
            for chip in chips
        ],
    }  # fmt: skip


def _stored(draft: strategies.Draft, recipe: Recipe, counts, sizes) -> float:
    """Return the bits that are kept of each weight that is rounded, on average."""
    weights = [inputs.weight for inputs in draft.site_inputs().values()]
    if not any(isinstance(weight, Switch) for weight in weights) or any(
        bases.sequence_of(weight) is not None for weight in weights
    ):
        return strategies.stored_bits(draft)
    tables = [recipe.bits, *(recipe.bits | phase.bits for phase in recipe.phases)]
    widths = np.stack([hardware.widths(counts, Recipe(table)).weight for table in tables], 1)
    kept = [set(site) for site in widths.tolist()]
    versions = [sum(each) for each in kept]
    scales = 32 * counts.scales * [len(each) for each in kept]
    used = sizes > 0
    return float(((np.array(versions) * sizes) + scales)[used].sum() / sizes.sum())


def operations(q: precision.Quantized, x_T, steps) -> float:
    """Return the operations of a simulated call.

    The compiler counts a loop once, so a sampling run is one call of the network.
    """
    return hardware.compiled_cost(precision.final_samples, q, x_T, steps).flops
