"""The probability-flow ODE as an ODE: fixed-step and adaptive solvers, forwards and backwards."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import POSITIVE, check_count, check_numbers, checked
from qdiffjax._typing import Array, EpsFn, PyTree, float_dtype
from qdiffjax.diffusion.processes import Process

# field(t, y) -> dy/dt.
Field = Callable[[Array, PyTree], PyTree]
# solve(field, y, times [M+1], monotone) -> y at times[-1].
Solver = Callable[[Field, PyTree, Array], PyTree]


def pf_ode(eps_fn: EpsFn, params: PyTree, process: Process) -> Field:
    """Return field(t, x [batch, *shape]) = f x + g^2 eps / (2 sigma); Song et al. 2021, eq. 13.

    For t > 0 with alpha > 0.
    """

    def field(t, x):
        gain = process.diffusion_squared(t) / (2 * process(t).sigma)
        return process.drift(t) * x + gain * eps_fn(params, x, t).astype(x.dtype)

    return field


# Of each stage: how far along the previous slope it looks, and the weight of its own.
_RK4 = ((0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6))


def rk4(field: Field, y: PyTree, times) -> PyTree:
    """Return y at times[-1] by the classical Runge-Kutta method; four calls an interval.

    Args:
      field: (t, y) -> dy/dt.
      y: pytree at times[0].
      times: monotone [M+1].
    """
    check_numbers("times", times, least_size=2, least_rank=1)
    times = jnp.asarray(times).astype(float_dtype(jax.tree.leaves(y)[0]))
    table = jnp.asarray(_RK4, times.dtype)

    def body(y, ends):
        t, h = ends[0], ends[1] - ends[0]

        # Stages in a loop of their own, so that the program holds one copy of the field.
        def stage(carry, row):
            reach, weight = row
            total, k = carry
            k = field(t + reach * h, _add(y, reach * h, k))
            return (_add(total, h * weight, k), k), None

        zero = jax.tree.map(jnp.zeros_like, y)
        (y_next, _), _ = jax.lax.scan(stage, (y, zero), table)
        return y_next, None

    return jax.lax.scan(body, y, (jnp.stack([times[:-1], times[1:]], axis=1)))[0]


def _add(y: PyTree, h, slope: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + h * b, y, slope)


@checked(rtol=POSITIVE, atol=POSITIVE, max_steps=check_count)
def diffrax_solver(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Solver:
    """Return an adaptive solver, diffrax's Dopri5 with a PI controller; needs the `ode` extra.

    Of its `times` only the ends matter. The tolerances are those of Song et al. 2021, appendix C.

    Raises:
      ImportError: if diffrax is not installed.
    """
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "got no diffrax, expected it for adaptive steps; pip install 'qdiffjax[ode]' or use rk4"
        ) from error

    def solve(field: Field, y: PyTree, times) -> PyTree:
        times = jnp.asarray(times).astype(float_dtype(jax.tree.leaves(y)[0]))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(jnp.asarray(t), y)), diffrax.Dopri5(),
            t0=times[0], t1=times[-1], dt0=None, y0=y, max_steps=max_steps,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        )  # fmt: skip
        return jax.tree.map(lambda leaf: leaf[-1], solution.ys)

    return solve


def solve_pf_ode(
    eps_fn: EpsFn, params: PyTree, process: Process, x, times, *, solver: Any = rk4
) -> Array:
    """Return x at times[-1] from x at times[0] along the PF-ODE [batch, *shape].

    Descending times sample; ascending times encode. Unlike the tables of `sample`, an adaptive
    solver's steps depend on x, so no error ledger reads them.

    Args:
      eps_fn: (params, x, t) -> eps.
      params: its parameters.
      process: the forward process.
      x: states [batch, *shape].
      times: monotone [M+1], positive, alpha > 0.
      solver: `rk4`, or `diffrax_solver(...)`.
    """
    check_numbers("times", times, least_size=2, least_rank=1)
    x = jnp.asarray(x).astype(float_dtype(x))
    return solver(pf_ode(eps_fn, params, process), x, times)
