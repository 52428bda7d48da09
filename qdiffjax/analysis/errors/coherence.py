"""Do the errors of different steps add up or cancel? Coherence, correlation, the two parts.

The error of a rounded weight is nearly the same map at every step; the error of a rounded
activation is nearly fresh at each. What reaches the end of the first adds up as vectors, of the
second as squares. With a_i = J_{i+1->N} e_i the propagated local error of step i, everything here
is in the Gram matrix G_ij = <a_i, a_j>, which one adjoint pass a probe estimates:

    G_ij = E_v <v, a_i> <v, a_j> = E_v <l_{i+1}, e_i> <l_{j+1}, e_j>,   l_i = J_i^T l_{i+1}, l_N = v
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax._checks import check_number, checked, require
from qdiffjax._typing import Array, CallFn, Key, PyTree
from qdiffjax.analysis.errors.propagation import gauss_legendre
from qdiffjax.analysis.errors.runs import (
    add,
    adjoints,
    at,
    current,
    inner,
    noises,
    step_map,
    wide,
    zeros,
)
from qdiffjax.diffusion import Point, Steps
from qdiffjax.precision.quantized import Quantized


def probed_gram(call: CallFn, xs, steps: Steps, local_errors, probes) -> Array:
    """Estimate the Gram matrix of the propagated local errors at x_0 [batch, N, N].

    Positive semidefinite; of rank at most the number of probes. First order.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states at which to linearise [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i [N, batch, *shape].
      probes: v [num, batch, *shape], see `runs.signs`.
    """
    xs = wide(xs)

    def products(v):
        ls = at(adjoints(call, xs, steps, v), slice(1, None))
        return inner(ls, local_errors)

    each = jax.lax.map(products, probes)
    return jnp.einsum("pnb,pmb->bnm", each, each, precision="highest") / each.shape[0]


def gram(terms) -> Array:
    """Return G_ij = <a_i, a_j> [batch, N, N] of terms a_i [N, batch, *shape] that sum to an error.

    With the terms of `propagation.fan`, at x_0, this is exact beyond first order.
    """
    flat = terms.reshape(*terms.shape[:2], -1)
    return jnp.einsum("nbk,mbk->bnm", flat, flat, precision="highest")


def coherence_factor(gram) -> Array:
    """Return kappa = |sum_i a_i|^2 / sum_i |a_i|^2 of a Gram matrix [*batch, N, N].

    Between 0 (all cancel) and N (all equal); 1 is what uncorrelated terms have on average. For a
    batch as a whole sum the Gram matrices over it first.
    """
    return jnp.sum(gram, axis=(-2, -1)) / jnp.trace(gram, axis1=-2, axis2=-1)


def weights_only(q: Quantized) -> Quantized:
    """Return q with its weights quantized and its activations left alone.

    Its errors are coherent from step to step; what q has beyond them is from activations:
    `local_errors(full, weights_only)` and `local_errors(weights_only, quantized)` at the same
    states add up to `local_errors(full, quantized)`.

    Raises:
      ValueError: site inputs of another rule than `quantize_site`.
    """
    for name, value in q.site_inputs.items():
        require(isinstance(value, precision.SiteQuant), f"site {name}", got=type(value),
                expected="SiteQuant inputs", remedy="see precision.quantize")  # fmt: skip
    inputs = {name: value._replace(activations=()) for name, value in q.site_inputs.items()}
    return dataclasses.replace(q, site_inputs=inputs)


def split_error(
    call: CallFn,
    x_T,
    steps: Steps,
    parts,
    *,
    num_nodes: int = 3,
    key: Key | None = None,
    state: PyTree = (),
) -> Array:
    """Return the share of each part of the local errors in the error that happened [M, batch, ...].

        delta_N = sum_m sum_i (int_0^1 J_{i+1->N} along x^(s) ds) e_i^m,   e_i = sum_m e_i^m

    the homotopy of `propagation` with one direction a part: the shares add up to x_hat_0 - x_0, up
    to the quadrature's error, which is O(|e|^{2K+1}) of K nodes, and with one node of the order of
    the trapezoid rule. Costs about 1 + 1.5 M sampling runs a node.

    Args:
      call: full-precision denoiser.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      parts: a-posteriori local errors e_i^m [M, N, batch, *state], such as those of weights
        and of activations.
      num_nodes: Gauss-Legendre nodes.
      key: noise of a stochastic sampler.
      state: what the first call is handed.
    """
    nodes, weights = (jnp.asarray(a, x_T.dtype) for a in gauss_legendre(num_nodes))
    es = jax.tree.map(lambda a: jnp.moveaxis(jnp.asarray(a), 1, 0), parts)
    table = (steps.times(x_T), steps.coeffs, es, noises(key, steps, x_T))

    def final(s):
        def body(carry, slices):
            x, vs = carry
            t, coeffs, e, z = slices
            y, push = jax.linearize(step_map(call, t, coeffs, z), x)
            y = add(y, jax.tree.map(lambda a: s * jnp.sum(a, axis=0), e))
            return (y, add(jax.vmap(push)(vs), e)), None

        x = Point(steps.coeffs.start(x_T), state).bare()
        (_, vs), _ = jax.lax.scan(body, (x, zeros(at(es, 0))), table)
        return jax.vmap(lambda v: current(v, steps))(vs)

    return jnp.tensordot(weights, jax.lax.map(final, nodes), 1)


class EndShares(NamedTuple):
    """Shares of a profile in its first and in its last steps []."""

    first: Array
    last: Array


class Conflict(NamedTuple):
    """The shares by KL, and by the mean square of the final error."""

    kl: EndShares
    error: EndShares


def error_profile(terms) -> Array:
    """Return what each step contributes to the mean square of the final error [N].

        E <term_i, delta>,   delta = sum_i term_i;   they sum to E |delta|^2

    Signed: a step may undo what others did. Coherent errors count with their alignment, which
    E |term_i|^2 would miss.

    Args:
      terms: contributions that sum to the final error, such as `propagation.fan`
        [N, batch, *shape].
    """
    terms = jnp.asarray(terms)
    products = terms * jnp.sum(terms, axis=0, keepdims=True)
    return jnp.mean(jnp.sum(products, axis=tuple(range(2, terms.ndim))), axis=1)


@checked(fraction=functools.partial(check_number, above=0, most=1))
def end_shares(profile, fraction: float = 0.1) -> EndShares:
    """Return the shares of the first and of the last `fraction` of the steps, profile [N].

    A step that is cut by the fraction counts in proportion.

    Raises:
      ValueError: if the fraction is not in (0, 1].
    """
    profile = jnp.asarray(profile)
    steps_before = jnp.arange(profile.size).astype(profile.dtype)
    counted = jnp.clip(fraction * profile.size - steps_before, 0, 1)
    total = jnp.sum(profile)
    return EndShares(jnp.sum(counted * profile) / total, jnp.sum(counted[::-1] * profile) / total)


def conflict(kl_terms, error_terms, fraction: float = 0.1) -> Conflict:
    """Return the shares of the first and last steps by both metrics, of one stochastic sampler.

    Args:
      kl_terms: of `divergences.path_kl` [N, batch].
      error_terms: contributions to the final error on the same steps [N, batch, *shape].
      fraction: see `end_shares`.
    """
    kl = jnp.mean(jnp.asarray(kl_terms), axis=1)
    return Conflict(end_shares(kl, fraction), end_shares(error_profile(error_terms), fraction))
