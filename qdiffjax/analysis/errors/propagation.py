"""How local errors travel to the end of the sampler.

With delta_i the accumulated error after i steps, e_i the a-posteriori local error of step i and
Phi_i the full-precision sampler from step i on (J_i its Jacobian), all of these are one number:

    (A) fan            delta_N = sum_i [Phi_i+1(x_hat_i+1) - Phi_i+1(F_i(x_hat_i))]      exact
    (C) first order    delta_N ~ sum_i J_i+1 e_i,   J at the full-precision states       + remainder
    (E) homotopy       delta_N = sum_i (int_0^1 J_i+1 along x^(s) ds) e_i                 exact

where x^(s) is the full-precision sampler with s e_i added in step i: x^(0) is the full-precision
run and x^(1) the quantized one, for any quantizer, differentiable or not. The survey's eqs. 9 and
16 are (C) with the Jacobians of the wrong steps; here a product runs over the steps still to do.
Only the full-precision network is differentiated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, Key
from qdiffjax.analysis.errors.runs import noises, norms, step_map, times
from qdiffjax.diffusion import Steps, current, start


def propagate(call: CallFn, xs: Array, steps: Steps, local_errors: Array) -> Array:
    """First-order accumulated error along a run (C): one JVP a step, no Jacobian.

        v_{i+1} = (c_x I + c_eps D eps(x_i, t_i)) v_i + e_i,   v_0 = 0

    Exact if eps is affine in x. Otherwise it drops the remainder, see `remainders`; with
    a-priori local errors also their change along the quantized run, which need not be small.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states at which to linearise [N+1, batch, *shape]; the full-precision run's.
      steps: the sampler, leaves [N].
      local_errors: e_i in units of x [N, batch, *shape].

    Returns:
      Errors in units of x [N+1, batch, *shape]; the first is zero.
    """

    def body(v, slices):
        x, t, coeffs, e = slices
        _, jv = jax.jvp(step_map(call, t, coeffs), (x,), (v,))
        return jv + e, jv + e

    v_0 = jnp.zeros_like(xs[0])
    _, vs = jax.lax.scan(body, v_0, (xs[:-1], times(steps, xs), steps.coeffs, local_errors))
    return jnp.concatenate([v_0[None], vs])


def remainders(call: CallFn, xs: Array, xs_hat: Array, steps: Steps) -> Array:
    """What first order drops in each step.

        rho_i = F_i(x_hat_i) - F_i(x_i) - J_i (x_hat_i - x_i)

    Adding rho_i to e_i makes `propagate` exact: delta_{i+1} = J_i delta_i + e_i + rho_i.

    Returns:
      Remainders in units of x [N, batch, *shape].
    """

    def one(slices):
        x, x_hat, t, coeffs = slices
        f = step_map(call, t, coeffs)
        y, jv = jax.jvp(f, (x,), (x_hat - x,))
        return f(x_hat) - y - jv

    return jax.lax.map(one, (xs[:-1], xs_hat[:-1], times(steps, xs), steps.coeffs))


def propagate_with_remainders(
    call: CallFn, xs: Array, xs_hat: Array, steps: Steps, local_errors: Array
) -> tuple[Array, Array]:
    """`propagate` and `remainders` together, for one linearisation a step.

    With a-posteriori local errors F_i(x_hat_i) - F_i(x_i) = delta_{i+1} - e_i needs no network.

    Returns:
      Errors [N+1, batch, *shape] and remainders [N, batch, *shape], in units of x.
    """
    deltas = xs_hat - xs

    def body(v, slices):
        x, delta, delta_next, t, coeffs, e = slices
        _, jacobian = jax.linearize(step_map(call, t, coeffs), x)
        jv, jdelta = jax.vmap(jacobian)(jnp.stack([v, delta]))
        return jv + e, (jv + e, delta_next - e - jdelta)

    v_0 = jnp.zeros_like(xs[0])
    table = (xs[:-1], deltas[:-1], deltas[1:], steps.t, steps.coeffs, local_errors)
    _, (vs, rhos) = jax.lax.scan(body, v_0, table)
    return jnp.concatenate([v_0[None], vs]), rhos


def run_suffix(call: CallFn, x: Array, first, steps: Steps, *, key: Key | None = None) -> Array:
    """Run the sampler from state x [batch, *shape] before step `first` to the end.

    `first` may be traced: the loop does exactly N - first steps.
    """
    table = (times(steps, x), steps.coeffs, noises(key, steps, current(x, steps.coeffs)))

    def body(i, x):
        return step_map(call, *jax.tree.map(lambda leaf: leaf[i], table))(x)

    return jax.lax.fori_loop(first, steps.t.shape[0], body, x)


def fan(call: CallFn, xs_hat: Array, steps: Steps, *, key: Key | None = None) -> Array:
    """Exact contribution of each step's local error to the final error (A); the reference.

        term_i = Phi_{i+1}(x_hat_{i+1}) - Phi_i(x_hat_i),   Phi_i = run_suffix from step i

    The discrete Alekseev-Groebner formula: Phi_i(x_hat_i) = Phi_{i+1}(F_i(x_hat_i)), so term_i
    is the final effect of adding e_i to F_i(x_hat_i). Costs N (N + 1) / 2 network calls.

    Args:
      call: full-precision denoiser.
      xs_hat: states of the quantized run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      key: noise of a stochastic sampler.

    Returns:
      Terms [N, batch, *shape]; they sum to x_hat_N - x_N.
    """
    starts = jnp.arange(xs_hat.shape[0])
    ends = jax.lax.map(
        lambda at: run_suffix(call, at[0], at[1], steps, key=key), (xs_hat, starts)
    )  # fmt: skip
    return ends[1:] - ends[:-1]


def gauss_legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [num_nodes] of the Gauss-Legendre rule on [0, 1]; one node = midpoint."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return (nodes + 1) / 2, weights / 2


def homotopy(
    call: CallFn,
    x_T: Array,
    steps: Steps,
    local_errors: Array,
    *,
    num_nodes: int,
    key: Key | None = None,
) -> Array:
    """Final error by the path-integrated Jacobian (E), K Gauss-Legendre nodes.

        delta_N ~ sum_k w_k v_N^(s_k),   v_{i+1} = DF_i(x_i^(s)) v_i + e_i

    The quadrature error is O(|e|^{2K+1}); a single midpoint node is of the order of the
    trapezoid rule. Costs about 2.5 K sampling runs.

    Args:
      call: full-precision denoiser.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: a-posteriori e_i [N, batch, *shape].
      num_nodes: K.
      key: noise of a stochastic sampler.

    Returns:
      Estimate of x_hat_N - x_N [batch, *shape].
    """
    table = (times(steps, x_T), steps.coeffs, local_errors, noises(key, steps, x_T))
    nodes, weights = (jnp.asarray(a, x_T.dtype) for a in gauss_legendre(num_nodes))

    def final(s):
        def body(carry, slices):
            x, v = carry
            t, coeffs, e, z = slices
            y, jv = jax.jvp(step_map(call, t, coeffs, z), (x,), (v,))
            return (y + s * e, jv + e), None

        x = start(x_T, steps)
        (_, v), _ = jax.lax.scan(body, (x, jnp.zeros_like(x)), table)
        return v

    return jnp.tensordot(weights, jax.lax.map(final, nodes), 1)


class SecondOrder(NamedTuple):
    """First- and second-order parts of the error along a run, both [N+1, batch, *shape]."""

    first: Array
    second: Array


def propagate_second_order(
    call: CallFn, xs, steps: Steps, local_errors, second_local_errors=None
) -> SecondOrder:
    """Return the accumulated error to second order: error = first + second + O(|e|^3).

        v_{i+1} = J_i v_i + e_i
        q_{i+1} = J_i q_i + D^2 F_i(x_i)[v_i, v_i] / 2 + e'_i

    The remainder of first order is F_i(x_i + d) - F_i(x_i) - J_i d = D^2 F_i[d, d] / 2 + O(|d|^3)
    with d = v + O(|e|^2); q is its propagated sum. One JVP of a JVP a step gives both lines, as
    the derivative of J(x) v in direction (v, 2 q) is D^2 F[v, v] + 2 J q.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs), twice differentiable.
      xs: states of the full-precision run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i [N, batch, *shape], a priori or a posteriori.
      second_local_errors: e'_i, local errors already of second order, such as means; or None.
    """
    if second_local_errors is None:
        second_local_errors = jnp.zeros_like(local_errors)

    def body(carry, slices):
        x, t, coeffs, e, e_second = slices
        f = step_map(call, t, coeffs)
        v, q = carry
        jv, twice = jax.jvp(lambda x, v: jax.jvp(f, (x,), (v,))[1], (x, v), (v, 2 * q))
        carry = jv + e, twice / 2 + e_second
        return carry, carry

    zero = jnp.zeros_like(xs[0])
    table = (xs[:-1], times(steps, xs), steps.coeffs, local_errors, second_local_errors)
    _, (vs, qs) = jax.lax.scan(body, (zero, zero), table)
    return SecondOrder(*(jnp.concatenate([zero[None], a]) for a in (vs, qs)))


def predicted_failure(found: SecondOrder, steps: Steps) -> Array:
    """Return the predicted relative error of first order at the final sample [batch].

        |q_N| / |v_N|

    Predicted, from the full-precision run and a-priori local errors alone: no quantized sampler
    runs. First order is expected to fail where it exceeds the tolerance, such as 0.25. It knows
    curvature only: neither the change of local errors along the quantized run (a priori the
    direction of activation errors is unknown, not their size), nor third order, nor a flip to
    another mode beyond the curvature that announces it.
    """
    first, second = (norms(current(a[-1], steps.coeffs)[None])[0] for a in found)
    return second / first


def eq_9(local_errors) -> Array:
    """Return the survey's eq. 9, E = sum_t J_t e_t, as a sum of local errors [batch, *state].

    J_t is "the Jacobian of the denoising function with respect to the quantized components at
    step t", so J_t e_t is what a step commits in units of x: `trajectories.local_errors`, here
    [N, batch, *state]. Nothing carries it to the end of the sampler; the true sum has the
    Jacobian of the remaining steps before each term. Right only if these are the identity.
    """
    return jnp.sum(local_errors, axis=0)


def eq_16(call: CallFn, xs, steps: Steps, local_errors) -> Array:
    """Return the survey's eq. 16, E = sum_t prod_{k=t}^T J_k e_t [batch, *state].

    With x_{t-1} = f(x_t) + e_t sampling runs from T to 1, so the product over k = t ... T is over
    the steps already done and over step t itself, after which e_t was added: J_t J_{t+1} ... J_T
    in the order printed, the derivative of x_{t-1} by x_T. The error passes J_1 ... J_{t-1}
    instead. Taken along the full-precision run, as f_theta_hat and e_t would count the
    quantization twice. Costs N JVPs a step.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i [N, batch, *state].
    """

    def body(vs, slices):
        x, t, coeffs, index = slices
        vs = jax.vmap(jax.linearize(step_map(call, t, coeffs), x)[1])(vs)
        return vs, vs[index]  # e_i has passed steps 0 ... i

    index = jnp.arange(steps.t.shape[0])
    table = (xs[:-1], times(steps, xs), steps.coeffs, index)
    _, passed = jax.lax.scan(body, jnp.asarray(local_errors), table)
    return jnp.sum(passed, axis=0)
