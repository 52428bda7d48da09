"""One denoiser, sampler and recipe: its error measured, predicted, attributed and bounded.

Pure functions, which nothing here compiles: a caller compiles each once, for every recipe, as
`measures` and `experiments.error_bounds` do. `q` is the quantized denoiser, `steps` the sampler.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, Key
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import ledger, prediction, propagation, runs
from qdiffjax.diffusion import Steps, as_point, sample
from qdiffjax.precision import Quantized, full_call, quantized_call
from qdiffjax.sites import Sites


class Run(NamedTuple):
    """A full-precision and a quantized run on the same noise.

    xs, xs_hat: states [N+1, batch, *shape], noisiest first, [N+1, batch, K, *shape] if the sampler
    has memory; eps_hat: what the quantized network predicted [N, batch, *shape]; cond: conditions
    of the samples, leaves [batch, ...], or None; key: of the sampler's noise, None without.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> run.errors.shape, float(abs(run.errors[0]).max())
      ((5, 8, 2), 0.0)
    """

    xs: Array
    xs_hat: Array
    eps_hat: Array
    cond: Any = None
    key: Key | None = None

    @property
    def errors(self) -> Array:
        """Accumulated error x_hat - x [N+1, batch, *shape]; the first is zero."""
        return self.xs_hat - self.xs

    def first(self, num: int) -> "Run":
        """Return the run of the first `num` samples."""
        return self.samples(slice(num))

    def samples(self, index: slice) -> "Run":
        """Return the run of some of its samples; those of a noisy sampler must begin at the first.

        The noise of a sample is a function of its place in the batch.
        """
        xs, xs_hat, eps_hat = (a[:, index] for a in (self.xs, self.xs_hat, self.eps_hat))
        return self._replace(xs=xs, xs_hat=xs_hat, eps_hat=eps_hat,
                             cond=jax.tree.map(lambda leaf: leaf[index], self.cond))  # fmt: skip


def measured(q: Quantized, x_T: Array, xs: Array, steps: Steps, *, key: Key | None = None) -> Run:
    """Run the quantized sampler from x_T beside the full-precision states xs, on the same noise."""
    call = quantized_call(q)

    def with_eps(x, t, inputs, state):
        eps, _, state = call(x, t, inputs, state)
        return eps, eps, state

    quantized = sample(with_eps, x_T, steps, key=key, per_call=q.calls(steps), state=q.start(x_T))
    return Run(xs, as_point(quantized.states).x, quantized.outputs)


class Predicted(NamedTuple):
    """Errors that are known without the quantized sampler [N+1, batch, *shape].

    errors: local errors of the full-precision run injected into it; first_order: propagated by
    its Jacobians.
    """

    errors: Array
    first_order: Array


def predicted(q: Quantized, xs: Array, steps: Steps) -> Predicted:
    """Predict the error from the full-precision run xs [N+1, batch, *shape]."""
    return Predicted(prediction.predict_errors(q, xs, steps),
                     prediction.predict_first_order(q, xs, steps))  # fmt: skip


class Propagated(NamedTuple):
    """What the steps of a quantized run committed, and where it went, all in units of x.

    local_errors, a posteriori [N, batch, *shape]; first_order: their propagation by the Jacobians
    of the full-precision run [N+1, batch, *shape]; remainders: what that leaves out of each step
    [N, batch, *shape].
    """

    local_errors: Array
    first_order: Array
    remainders: Array


def propagated(q: Quantized, run: Run, steps: Steps) -> Propagated:
    """Take a measured run apart."""
    full = full_call(q)
    recorded = lambda x, t, eps, state: (eps, None, state)  # noqa: E731
    e = runs.local_errors(full, recorded, run.xs_hat, steps, per_call=run.eps_hat)
    return Propagated(e, *propagation.propagate_with_remainders(full, run.xs, run.xs_hat, steps, e))


class Bounded(NamedTuple):
    """Norms of each sample's error and its bounds along the run [N+1, batch], in units of x.

    local: of the local errors [N, batch]; miss: relative error of first order at the end [batch];
    slack: what the arithmetic of the runs themselves may add to any of them, see
    `rounding_slack` [N+1, batch].
    """

    measured: Array
    local: Array
    gronwall: Array
    remainder: Array
    miss: Array
    slack: Array | float = 0.0

    def holds(self) -> tuple[bool, bool]:
        """Return whether both bounds, with the slack of rounding, hold at every step and sample."""
        return tuple(
            bool(jnp.all(bound + self.slack >= self.measured))
            for bound in (self.gronwall, self.remainder)
        )  # type: ignore[return-value]

    def norms(self) -> dict[str, Array]:
        """Return the error and its bounds along the run by name, each [N+1, batch]."""
        return {"measured": self.measured, "Grönwall": self.gronwall,
                "first order + remainder": self.remainder}  # fmt: skip

    def over_measured(self) -> tuple[Array, Array]:
        """Return both bounds over the error they bound, from the first step on [N, batch]."""
        return self.gronwall[1:] / self.measured[1:], self.remainder[1:] / self.measured[1:]


def sampled(states: Array, steps: Steps) -> Array:
    """Return the x_t [N+1, batch, *shape] of states, or of errors, of a sampler with memory too."""
    return jax.vmap(steps.coeffs.current)(states)


def network_roundings(sites: Sites) -> float:
    """Return about how many units of roundoff a network's result is off by, relative to its size.

        (sum_l 8 + log2 K_l)^(1/2)

    over products of inner length K_l: sums in blocks round about log2 K times, eight stand for the
    elementwise functions between two products, and roundings are taken to be independent, so that
    the root of their number counts (Higham & Mary 2019, section 2).
    """
    lengths = [s.macs / math.prod(s.out_shape) for s in sites if s.macs]
    return math.sqrt(sum(8 + math.log2(length) for length in lengths))


def rounding_slack(run: Run, gains, steps: Steps, num_roundings: float) -> Array:
    """Return what rounding of the runs' own arithmetic may add to the error [N+1, batch].

        slack_{i+1}^2 = gains_i^2 slack_i^2 + rho_i^2,   slack_0 = 0
        rho_i^2 = u^2 sum over both runs of
                  |c.x|^2 |x_i|^2 + |x_{i+1}|^2 + (1 + num_roundings^2) |c.eps eps|^2

    u is the unit roundoff of the states: two products and their sum, and an eps that is off by
    `num_roundings` of them. What a step adds travels as a local error does, and steps add in
    squares, as their roundings are taken to be independent. At 12 bits and more the error is so
    small that this shows: a bound can then be missed by it.
    """
    u, c = float(jnp.finfo(run.xs.dtype).eps) / 2, steps.coeffs
    gain = jnp.sum(jnp.square(c.x).reshape(c.x.shape[0], -1), 1)[:, None].astype(run.xs.dtype)
    update = runs.norms(jax.vmap(lambda c, eps: c.commit(eps))(c, run.eps_hat)) ** 2
    rho = 2 * (1 + num_roundings**2) * update
    for xs in (run.xs, run.xs_hat):
        sizes = runs.norms(xs) ** 2
        rho += gain * sizes[:-1] + sizes[1:]
    return jnp.sqrt(pathwise.gronwall(jnp.square(gains), u**2 * rho))


def bounded(
    run: Run, propagated: Propagated, gains, steps: Steps, *, num_roundings: float = 0.0
) -> Bounded:
    """Bound the error of a measured run.

    With a sampler that has memory the bounds are of its whole state, and so of its x_t, which is
    what was measured.

    Args:
      run: what was measured.
      propagated: of the same run.
      gains: of its segments [N, batch], see `pathwise.gronwall`.
      steps: the sampler, leaves [N].
      num_roundings: of the network, see `network_roundings`.
    """
    errors, local = sampled(run.errors, steps), runs.norms(propagated.local_errors)
    first, rho = propagated.first_order, runs.norms(propagated.remainders)
    size = runs.norms(errors)
    remainder, _ = pathwise.remainder_bound(gains, rho, first)
    miss = runs.norms((sampled(first, steps) - errors)[-1:])[0] / size[-1]
    slack = rounding_slack(run, gains, steps, num_roundings)
    return Bounded(size, local, pathwise.gronwall(gains, local), remainder, miss, slack)


def attributed(
    attribute: Callable[..., ledger.Ledger], *, tolerance: float, max_nodes: int
) -> tuple[ledger.Ledger, int]:
    """Return a ledger with as many quadrature nodes as its defect asks for, and their number.

    One node, then 3, 7 and 15: each rule of `propagation.nested_rule` keeps the nodes before it.

    Args:
      attribute: (nodes [1], weights [1]) -> `ledger.attribution` with that quadrature; the nodes
        come one at a time, so that any number of them compiles once.
      tolerance: median defect that is good enough.
      max_nodes: most nodes, 1 to 15; a number between two rules means the smaller.
    """
    parts: list[ledger.Ledger] = []
    for level in range(propagation.NUM_NESTED):
        nodes, weights = propagation.nested_rule(level)
        if parts and len(nodes) > max_nodes:
            break
        parts += [attribute(node[None], np.ones(1)) for node in nodes[len(parts) :]]
        whole = parts[0]._replace(contributions={
            name: _weighted(weights, [part.contributions[name] for part in parts])
            for name in parts[0].contributions
        })  # fmt: skip
        if jnp.median(ledger.defect(whole)) <= tolerance:
            break
    return whole, len(parts)


def _weighted(weights, arrays) -> Array:
    """Return the weighted sum of arrays, in NumPy: another number of them compiles nothing."""
    arrays = [np.asarray(array) for array in arrays]
    total = sum(float(w) * a for w, a in zip(weights, arrays, strict=True))
    return jnp.asarray(total, arrays[0].dtype)


def fanned(q: Quantized, x_T: Array, steps: Steps, *, key: Key | None = None):
    """Return the exact parts of each step in the final error, and the error they sum to.

    Returns:
      [N, batch, *shape] and [batch, *shape]; costs of the order of N^2 network calls.
    """
    full = full_call(q)
    quantized = quantized_call(q)
    pair = runs.couple(
        full, quantized, x_T, steps, key=key, per_call=q.calls(steps), state=q.start(x_T)
    )
    xs_hat, errors = (as_point(points).x for points in (pair.xs_hat, pair.errors))
    return propagation.fan(full, xs_hat, steps, key=key), errors[-1]
