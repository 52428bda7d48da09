"""Cures that decide how weights round, from the second moments of what they multiply.

A weight [K, M] that changes by D changes its product's squared error by tr(D^T H D) a row, with
H = E[x x^T] of the rows x. Nearest rounding looks at D alone; these look at H.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from qdiffjax import quant
from qdiffjax._checks import NOT_NEGATIVE, POSITIVE, check_count, check_names, checked, require
from qdiffjax._typing import Array
from qdiffjax.precision.around import Around
from qdiffjax.precision.formats import CALIBRATIONS, leaves_scales
from qdiffjax.quant import expand
from qdiffjax.quant.formats import has_equal_steps
from qdiffjax.strategies.descent import adam
from qdiffjax.strategies.drafts import CLIP, ROUND, Cure, Draft
from qdiffjax.strategies.grids import Grid
from qdiffjax.strategies.statistics import grams, weight_matrix, weight_operand, with_matrices
from qdiffjax.strategies.tables import explicit


def squared_error(gram: Array, change: Array) -> Array:
    """Return tr(D^T H D), the squared error of a row of products, for H [K, K] and D [K, M]."""
    return jnp.sum(change * jnp.matmul(gram, change, precision="highest"))


def clips(calibration: str | Callable = "mse") -> Cure:
    """Return the cure that takes the scales of weights from another rule than their largest.

    Args:
      calibration: name of a rule, such as "mse", "percentile" or "gaussian" (the optimum for a
        Gaussian of that size, as ACIQ, Banner et al. 2019), or a function like `quant.mse`;
        `functools.partial(quant.lp, p=2.4)` is that of Q-Diffusion.

    Raises (when applied):
      ValueError: no weight whose format leaves its scales to a rule; one that finds no zero points,
        of weights with them.
    """
    if not callable(calibration):
        check_names("calibration", (calibration,), CALIBRATIONS)
    rule = calibration if callable(calibration) else CALIBRATIONS[calibration]
    name = calibration if isinstance(calibration, str) else getattr(rule, "__name__", "own clips")

    def check(draft: Draft) -> None:
        entries = [bits.weight for table in explicit(draft)[0].tables for bits in table.values()]
        require(any(map(leaves_scales, entries)), "clips",
                got="no weight whose format leaves its scales to a rule",
                expected="one, such as W4",
                remedy="leave the cure out: blocks find their own scales, and a calibration in the "
                "recipe comes first")  # fmt: skip
        apply(draft).site_inputs()  # refuses a rule that a weight's format does not take

    def apply(draft: Draft) -> Draft:
        options = {**draft.options, "calibrate_fn": rule}
        return dataclasses.replace(draft, options=options)

    return Cure(f"clips by {name}", CLIP, apply, check)


@checked(damping=POSITIVE)
def gptq(damping: float = 0.01, *, sites: Sequence[str] | None = None) -> Cure:
    """Return the cure that rounds weights one input after another, the rest making up for it.

    GPTQ (Frantar et al. 2023), see `gptq_matrix`, on the states of the sampler. Costs a pass over
    the states.

    Args:
      damping: of H, in shares of its mean diagonal.
      sites: globs; others are rounded to nearest.
    """

    def round_one(grid: Grid, w, scale, zero, gram):
        return gptq_matrix(w, scale, zero, gram, format=grid.format, damping=damping)

    return Cure("GPTQ", ROUND, lambda draft: _rounded(draft, sites, round_one),
                lambda draft: _grids(draft, sites))  # fmt: skip


@functools.partial(jax.jit, static_argnames="damping")
def gptq_matrix(w, scale, zero_point, gram, *, format, damping: float = 0.01) -> Array:
    """Round a weight [K, M] so that tr(D^T H D) is small; Frantar et al. 2023, algorithm 1.

        q_j = Q(w_j),   w_i -= (w_j - q_j) U_ji / U_jj  for i > j,   (H + lambda I)^-1 = U^T U

    Inputs j in the order of falling H_jj ("act order"). Each is rounded to nearest, but after what
    is left of w has made up for the errors of those before, which is the minimum over the rest
    (Optimal Brain Surgeon). An input that never differs from zero is rounded to nearest.

    Args:
      w: [K, M].
      scale, zero_point: of every number [K, M]; zero_point may be None.
      gram: H [K, K].
      format: as for `quant.fake_quant`.
      damping: lambda in shares of the mean diagonal of H.
    """
    order = jnp.argsort(-jnp.diagonal(gram))
    h = gram[order][:, order].astype(jnp.float32)
    diagonal = jnp.diagonal(h)
    h = h + jnp.diag(jnp.where(diagonal > 0, damping * jnp.mean(diagonal), 1.0))
    inverse = jnp.linalg.inv(h)
    upper = jnp.linalg.cholesky((inverse + inverse.T) / 2).T
    places = jnp.arange(w.shape[0])
    rows = (w[order], scale[order], None if zero_point is None else zero_point[order])

    def one(w, j):
        zero = None if rows[2] is None else rows[2][j][None]
        q = quant.fake_quant(w[j][None], rows[1][j][None], zero, format=format)[0]
        error = (w[j] - q) / upper[j, j]
        later = jnp.where(places > j, upper[j], 0)
        return w - later[:, None] * error[None], q

    _, rounded = jax.lax.scan(one, rows[0].astype(jnp.float32), places)
    return jnp.zeros_like(rounded).at[order].set(rounded)


@checked(num_steps=check_count, learning_rate=POSITIVE, weight=NOT_NEGATIVE)
def adaround(
    num_steps: int = 500,
    learning_rate: float = 0.03,
    weight: float = 3.0,
    *,
    sites: Sequence[str] | None = None,
) -> Cure:
    """Return the cure that learns for each weight whether it rounds up or down, site by site.

    AdaRound (Nagel et al. 2020), see `adaround_matrix`. Costs a pass over the states and
    `num_steps` steps a site, which read second moments, not data.
    """

    def round_one(grid: Grid, w, scale, zero, gram):
        return adaround_matrix(w, scale, zero, gram, format=grid.format, num_steps=num_steps,
                               learning_rate=learning_rate, weight=weight)  # fmt: skip

    def apply(draft: Draft) -> Draft:
        done = _rounded(draft, sites, round_one)
        return done.billed(optimizer_steps=num_steps * len(with_matrices(draft, sites)))

    return Cure("AdaRound", ROUND, apply, lambda draft: check_codes(_grids(draft, sites)))


@functools.partial(jax.jit, static_argnames=("num_steps", "learning_rate", "weight"))
def adaround_matrix(
    w, scale, zero_point, gram, *, format, num_steps: int, learning_rate: float, weight: float
) -> Array:
    """Round each number of a weight [K, M] up or down so that tr(D^T H D) is small.

        min over V of  tr(D^T H D) / tr(D_0^T H D_0) + weight * mean(1 - |2 h(V) - 1|^beta)

    with D the error of soft rounding h(V) and D_0 that of nearest. Nagel et al. 2020, eqs. 21 to
    25; the quotient makes one weight fit every site. Adam begins where soft rounding is the
    identity and D is zero, so that it is the regularizer that decides: it has to outweigh D. The
    better of the result and of nearest is returned.
    """
    nearest = quant.fake_quant(w, scale, zero_point, format=format)
    floor = jnp.maximum(squared_error(gram, nearest - w), jnp.finfo(jnp.float32).tiny)

    def loss(logits, step):
        on, beta = quant.adaround_schedule(step, num_steps)
        soft = quant.fake_quant_adaround(w, scale, logits, zero_point, format=format)
        price = quant.adaround_regularizer(logits, beta) / w.size
        return squared_error(gram, soft - w) / floor + on * weight * price

    logits = adam(loss, quant.adaround_init(w, scale), num_steps, learning_rate)
    hard = quant.fake_quant_adaround(w, scale, logits, zero_point, format=format, hard=True)
    is_better = squared_error(gram, hard - w) < squared_error(gram, nearest - w)
    return jnp.where(is_better, hard, nearest)


def check_codes(grids: dict[str, Grid]) -> None:
    """Refuse weights that do not round up or down by one code.

    Raises:
      ValueError: no integers, or those of one bit with a sign.
    """
    for name, grid in grids.items():
        require(has_equal_steps(grid.format), name, got=f"weights as {grid.format}",
                expected="integers of 2 or more bits, or unsigned, which round up or down",
                remedy="gptq(), which rounds any format")  # fmt: skip


def single_grids(draft: Draft, names: Sequence[str]) -> dict[str, Grid]:
    """Return the grids of weights that are to have one rounding for all calls.

    Raises:
      ValueError: as `Draft.weight_grids`; a basis that changes with the calls.
    """
    for name in names:
        bases = draft.around.get(name, Around()).bases
        require(all(basis.num_calls is None for basis in bases), name, got="a weight by step",
                expected="one for all steps", remedy="smooth in one range")  # fmt: skip
    return draft.weight_grids(names)


def _grids(draft: Draft, sites: Sequence[str] | None) -> dict[str, Grid]:
    return single_grids(draft, with_matrices(draft, sites))


def _rounded(draft: Draft, sites: Sequence[str] | None, round_fn: Callable) -> Draft:
    """Return the draft with weights rounded as matrices, by round_fn(grid, w, scale, zero, H)."""
    grids = _grids(draft, sites)
    moments, rounded = grams(draft, tuple(grids)), dict(draft.rounded)
    for name, grid in grids.items():
        site = draft.sites[name]
        zero = grid.zero_point
        full = [None if part is None else weight_matrix(site, expand(part, grid.w.shape))
                for part in (grid.scale, zero)]  # fmt: skip
        w = weight_matrix(site, grid.w.astype(jnp.float32))
        done = round_fn(grid, w, full[0], full[1], moments[name].astype(jnp.float32))
        rounded[name] = weight_operand(site, done).astype(grid.w.dtype)
    return dataclasses.replace(draft, rounded=rounded).billed(evaluations=draft.states.num)
