"""Recipe algebra from gradients: error vectors of all sites and choices from a few adjoint passes.

    <v, e_l(b)> = <A_l^T v, w_l(b) - w_l>,    A_l = d x_0 / d w_l through the whole sampler

so one pass for a random direction v of each sample projects *every* e_l(b), and inner products of
projections are those of vectors, on average. To first order in the weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion
from qdiffjax._checks import check_count, check_key, check_type, require
from qdiffjax._typing import Key
from qdiffjax.compiling import compiled
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import Steps
from qdiffjax.precision import Quantized, SiteQuant, quantized_call
from qdiffjax.strategies.algebra import ErrorAlgebra
from qdiffjax.strategies.trials import Trial

BY_RUNS = "use error_algebra, or recommend(..., num_probes=None)"


def check_noiseless(steps: Steps) -> None:
    """Refuse a sampler that adds noise, whose error vectors no adjoint pass here finds."""
    require(not steps.adds_noise, "steps", got="a sampler that adds noise",
            expected="one that does not", remedy=BY_RUNS)  # fmt: skip


def sketched_algebra(noise: Trial, key: Key, *, num_probes: int = 8, around=None) -> ErrorAlgebra:
    """Return the algebra of first order, from `num_probes` adjoint passes whatever is offered.

        K[(l, b), (m, c)] = mean over samples and probes of <v, e_l(b)> <v, e_m(c)> / n,

    of n elements of a sample, v with random signs (Hutchinson 1989); its relative error is about
    sqrt(2 / (samples probes)). Around a pick the gradients are those at its weights, and e_l(b) has
    a part of its error as in `error_algebra`. `vectors` are the projections / sqrt(n)
    [sites, choices, samples, probes].

    A pass counts as three sampling runs; samples are done one after another.

    Args:
      noise: from `trial`; what is found on it must be checked on other noise.
      key: of the directions.
      num_probes: of each sample.
      around: a pick; None for full precision.

    Raises:
      ValueError: choices that round activations, or weights anew at every call; a sampler that
        adds noise.
    """
    check_type("noise", noise, Trial, remedy="trial(choices, key, num_samples)")
    check_key("key", key)
    check_count("num_probes", num_probes)
    choices = noise.choices
    is_plain = not choices.rounds_activations.any() and not np.isnan(choices.weight_rmse).any()
    require(is_plain, "choices", got="activations, or weights that change from call to call",
            expected="weights rounded once", remedy=BY_RUNS)  # fmt: skip
    check_noiseless(choices.steps)
    base = [None] * len(choices.sites) if around is None else [*map(int, choices.checked(around))]
    weights = {name: inputs.weight for name, inputs in choices.quantized(base).site_inputs.items()}
    moved = {}
    for i, site in enumerate(choices.sites):
        for member in choices.members[site]:
            ways = [choices.tables[name, False][member].weight if np.isfinite(bits)
                    else weights[member]
                    for name, bits in zip(choices.names, choices.bits[i], strict=True)]  # fmt: skip
            moved[member] = jnp.stack([w - weights[member] for w in ways])
    x_T, cond = noise.draw
    probes = jax.random.rademacher(key, (len(x_T), num_probes, *x_T.shape[1:]), x_T.dtype)
    apart = None if around is None else noise.final(base) - noise.full
    with jax.default_matmul_precision("highest"):
        found = _program()(choices.calibration.denoiser, weights, moved, x_T, cond, probes,
                           choices.steps)  # fmt: skip
    size = math.sqrt(math.prod(x_T.shape[1:]))
    vectors = np.stack([
        sum(np.asarray(found[member]) for member in choices.members[site]) / size
        for site in choices.sites
    ])  # fmt: skip
    vectors = np.moveaxis(vectors, -1, 1)
    if apart is not None:
        axes = tuple(range(2, probes.ndim))
        shared = np.asarray(jnp.sum(probes * apart[:, None], axes)) / size / len(choices.sites)
        vectors = vectors + shared
    is_offered = np.isfinite(choices.bits)[:, :, None, None]
    vectors = np.where(is_offered, vectors, 0).astype(vectors.dtype)
    return ErrorAlgebra(choices, vectors, np.zeros(choices.bits.shape),
                        None if around is None else np.asarray(base),
                        1 + 3 * num_probes)  # fmt: skip


@functools.cache
def _program():
    return compiled(_projections)


def _projections(denoiser: Denoiser, weights, moved, x_T, cond, probes, steps: Steps):
    """Return <A_l^T v, dw> of every site {site: [samples, probes, choices]}."""

    def one(sample):
        x_T, cond, vs = jax.tree.map(lambda a: a[None], sample)

        def final(weights):
            q = Quantized(denoiser, {name: SiteQuant(w) for name, w in weights.items()})
            call = quantized_call(q.given(cond))
            return diffusion.sample(call, x_T, steps, keep_trajectory=False).x_0

        _, pull = jax.vjp(final, weights)

        def project(v):
            (bars,) = pull(v[None])
            return {n: jnp.tensordot(moved[n], bars[n], bars[n].ndim) for n in bars}

        return jax.lax.map(project, vs[0])

    return jax.lax.map(one, (x_T, cond, probes))
