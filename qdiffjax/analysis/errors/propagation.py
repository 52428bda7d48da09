"""How local errors travel to the end of the sampler.

With delta_i the accumulated error after i steps, e_i the a-posteriori local error of step i and
Phi_i the full-precision sampler from step i on (J_i its Jacobian), all of these are one number:

    (A) fan            delta_N = sum_i [Phi_i+1(x_hat_i+1) - Phi_i+1(F_i(x_hat_i))]      exact
    (B) mean value     delta_i+1 = A_i delta_i + e_i,   A_i the mean Jacobian between runs  exact
    (C) first order    delta_N ~ sum_i J_i+1 e_i,   J at the full-precision states       + remainder
    (D) trapezoid      as (B), A_i the mean of the Jacobians of both runs                + O(|e|^3)
    (E) homotopy       delta_N = sum_i (int_0^1 J_i+1 along x^(s) ds) e_i                 exact

where x^(s) is the full-precision sampler with s e_i added in step i: x^(0) is the full-precision
run and x^(1) the quantized one, for any quantizer, differentiable or not. The survey's eqs. 9 and
16 are (C) with the Jacobians of the wrong steps; here a product runs over the steps still to do.
Only the full-precision network is differentiated.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, checked, concrete
from qdiffjax._typing import Array, CallFn, Key
from qdiffjax.analysis.errors.runs import (
    Path,
    add,
    along,
    at,
    current,
    difference,
    noises,
    norms,
    step_map,
    zeros,
)
from qdiffjax.diffusion import Steps, as_point


def propagate(call: CallFn, xs, steps: Steps, local_errors) -> Any:
    """Return the first-order error along a run (C): one JVP a step, no Jacobian.

        v_{i+1} = (c_x I + c_eps D eps(x_i, t_i)) v_i + e_i,   v_0 = 0

    Exact if eps is affine in x. Otherwise it drops `propagate_with_remainders`' remainder; with
    a-priori local errors also their change along the quantized run, which need not be small.

    Args:
      call: full-precision denoiser (x, t, inputs, state) -> (eps, outputs, state).
      xs: states at which to linearise [N+1, batch, *shape]; the full-precision run's.
      steps: the sampler, leaves [N].
      local_errors: e_i in units of x [N, batch, *shape].

    Returns:
      Errors in units of x [N+1, batch, *shape]; the first is zero.
    """

    def push(v, f, x, e):
        return add(jax.jvp(f, (x,), (v,))[1], e)

    return along(push, Path(call, xs, steps), zeros(at(xs, 0)), local_errors)


def propagate_with_remainders(
    call: CallFn, xs, xs_hat, steps: Steps, local_errors
) -> tuple[Any, Any]:
    """Return `propagate` and what it drops in each step, for one linearisation a step.

        rho_i = F_i(x_hat_i) - F_i(x_i) - J_i (x_hat_i - x_i)

    Adding rho_i to e_i makes `propagate` exact: delta_{i+1} = J_i delta_i + e_i + rho_i. With
    a-posteriori local errors F_i(x_hat_i) - F_i(x_i) = delta_{i+1} - e_i needs no network.

    Returns:
      Errors [N+1, batch, *shape] and remainders [N, batch, *shape], in units of x.
    """
    deltas = difference(xs_hat, xs)

    def push(carry, f, x, e, delta, delta_next):
        _, jacobian = jax.linearize(f, x)
        both = jax.vmap(jacobian)(jax.tree.map(lambda *a: jnp.stack(a), carry[0], delta))
        return add(at(both, 0), e), difference(difference(delta_next, e), at(both, 1))

    zero = zeros(at(xs, 0))
    before, after = at(deltas, slice(-1)), at(deltas, slice(1, None))
    vs, rhos = along(push, Path(call, xs, steps), (zero, zero), local_errors, before, after)
    return vs, at(rhos, slice(1, None))


def propagate_mean_value(call: CallFn, xs, xs_hat, steps: Steps, local_errors, rule=None) -> Any:
    """Return the error by the mean Jacobian between the two runs (B), m JVPs a step.

        v_{i+1} = A_i v_i + e_i,   A_i = int_0^1 J_i(x_i + u (x_hat_i - x_i)) du,   v_0 = 0

    Exact with a-posteriori local errors, by the mean value theorem, up to the quadrature of the
    integral: m Gauss-Legendre nodes leave O(|e|^(2 m + 1)) a step. It needs both runs, so that it
    predicts nothing: it says how the error that happened was carried.

    Args:
      call: full-precision denoiser (x, t, inputs, state) -> (eps, outputs, state).
      xs, xs_hat: states of the two runs [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i at the quantized run's states [N, batch, *shape].
      rule: nodes u and weights [m] on [0, 1]; None is `gauss_legendre(3)`.

    Returns:
      Errors in units of x [N+1, batch, *shape]; the first is zero.
    """
    nodes, weights = gauss_legendre(3) if rule is None else rule
    deltas = at(difference(xs_hat, xs), slice(-1))

    def push(v, f, x, e, delta):
        def pushed(u):
            between = jax.tree.map(lambda a, d: a + u.astype(a.dtype) * d, x, delta)
            return jax.jvp(f, (between,), (v,))[1]

        each = jax.lax.map(pushed, jnp.asarray(nodes))
        mean = jax.tree.map(
            lambda a: jnp.einsum("k,k...->...", jnp.asarray(weights).astype(a.dtype), a), each
        )
        return add(mean, e)

    return along(push, Path(call, xs, steps), zeros(at(xs, 0)), local_errors, deltas)


TRAPEZOID = (np.array([0.0, 1.0]), np.array([0.5, 0.5]))  # nodes and weights on [0, 1]


def propagate_trapezoid(call: CallFn, xs, xs_hat, steps: Steps, local_errors) -> Any:
    """Return the error by the mean of the Jacobians of both runs (D), two JVPs a step.

        v_{i+1} = (J_i(x_i) + J_i(x_hat_i)) / 2 v_i + e_i,   v_0 = 0

    The dual-weighted residual of Becker & Rannacher 2001, for a sampler: wrong by at most
    sup |D^3 F_i| |delta_i|^3 / 12 in each step, of relative order |e|^2 where first order has |e|.
    Arguments and result as for `propagate_mean_value`.
    """
    return propagate_mean_value(call, xs, xs_hat, steps, local_errors, TRAPEZOID)


def run_suffix(call: CallFn, x, first, steps: Steps, *, key: Key | None = None) -> Any:
    """Run the sampler from state x [batch, *shape] before step `first` to the end.

    `first` may be traced: the loop does exactly N - first steps.
    """
    if concrete(first) is not None:  # N steps leave N + 1 states, of which the last is the end
        check_count("first", first, least=0, most=steps.t.shape[0])
    state = as_point(x).x
    table = (steps.times(state), steps.coeffs, noises(key, steps, steps.coeffs.current(state)))

    def body(i, x):
        return step_map(call, *at(table, i))(x)

    return jax.lax.fori_loop(first, steps.t.shape[0], body, x)


def fan(call: CallFn, xs_hat, steps: Steps, *, key: Key | None = None) -> Any:
    """Return the exact contribution of each step's local error to the final error (A).

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
    starts = jnp.arange(steps.t.shape[0] + 1)
    ends = jax.lax.map(
        lambda at: run_suffix(call, at[0], at[1], steps, key=key), (xs_hat, starts)
    )  # fmt: skip
    return difference(at(ends, slice(1, None)), at(ends, slice(-1)))


@checked(num_nodes=check_count)
def gauss_legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights [num_nodes] of the Gauss-Legendre rule on [0, 1]; one: midpoint."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return (nodes + 1) / 2, weights / 2


NUM_NESTED = 4  # rules of `nested_rule`, of 1, 3, 7 and 15 nodes


@functools.cache
def nested_rule(level: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights on [0, 1] of a rule that holds the nodes of all rules before it.

    From the midpoint on, each rule adds to its n nodes x_j the n + 1 roots of the polynomial E with
    int prod_j (x - x_j) E(x) x^k dx = 0 for k <= n: 1 and 3 nodes are Gauss-Legendre, 7 Kronrod's.
    Exact for polynomials of degree 1, 5, 11 and 23. The old nodes come first, in their order.

    Source: Patterson, The optimum addition of points to quadrature formulae, 1968.

    Args:
      level: 0 to 3.
    """
    nodes = np.zeros(1)
    points, masses = np.polynomial.legendre.leggauss(32)  # exact for all integrals below
    for _ in range(level):
        size = len(nodes) + 1
        old = np.prod(points[:, None] - nodes, axis=1)
        basis = np.polynomial.legendre.legvander(points, size)
        moments = basis[:, :size].T @ (basis * (masses * old)[:, None])  # [size, size + 1]
        added = np.linalg.solve(moments[:, :size], -moments[:, size])
        nodes = np.append(nodes, np.polynomial.legendre.legroots([*added, 1.0]).real)
    integrals = np.zeros(len(nodes))
    integrals[0] = 1.0  # of the Legendre polynomials over [-1, 1], halved
    vander = np.polynomial.legendre.legvander(nodes, len(nodes) - 1)
    return (nodes + 1) / 2, np.linalg.solve(vander.T, integrals)


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
      call: full-precision denoiser, twice differentiable.
      xs: states of the full-precision run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i [N, batch, *shape], a priori or a posteriori.
      second_local_errors: e'_i, local errors already of second order, such as means; or None.
    """
    zero = zeros(at(xs, 0))
    if second_local_errors is None:
        second_local_errors = zeros(local_errors)

    def push(carry, f, x, e, e_second):
        v, q = carry
        along_v = lambda x, v: jax.jvp(f, (x,), (v,))[1]  # noqa: E731
        jv, twice = jax.jvp(along_v, (x, v), (v, jax.tree.map(lambda a: 2 * a, q)))
        return add(jv, e), add(jax.tree.map(lambda a: a / 2, twice), e_second)

    run = Path(call, xs, steps)
    return SecondOrder(*along(push, run, (zero, zero), local_errors, second_local_errors))


def predicted_failure(orders: SecondOrder, steps: Steps) -> Array:
    """Return the predicted relative error of first order at the final sample [batch].

        |q_N| / |v_N|

    Predicted, from the full-precision run and a-priori local errors alone: no quantized sampler
    runs. First order is expected to fail where it exceeds the tolerance, such as 0.25. It knows
    curvature only: neither the change of local errors along the quantized run (a priori the
    direction of activation errors is unknown, not their size), nor third order, nor a flip to
    another mode beyond the curvature that announces it.
    """
    first, second = (norms(current(at(a, -1), steps)[None])[0] for a in orders)
    return second / first
