"""Which (site, step) the final error comes from: one sweep each way, no rerun per cell.

Two ledgers answer two questions.

* `attribution`: where did the error that happened come from? Local errors recorded on the
  quantized run at each site's actual input (a posteriori), sensitivities averaged over the
  homotopy from the full-precision to the quantized run. Complete: the entries sum to the change
  of the functional, for any quantizer.
* ablation (`errors.ablation`): what would quantizing one cell alone do? Local errors at the
  full-precision run's own inputs (a priori), sensitivities at the full-precision run.

They differ wherever activation rounding decorrelates between the two runs.

Samples are analysed one at a time under vmap, so sites whose results have no batch axis (a time
embedding) are attributed to samples too; the network must not mix the samples of a batch.
Stochastic rounding then draws its bits for one sample: the samples of a batch share them, so for
a batch of more than one the runs are not those of `sample` on the whole batch.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._cells import MAX_DEFECT, Cells
from qdiffjax._checks import check_callable, check_names, check_numbers, require
from qdiffjax._tables import Table, numbers_of
from qdiffjax._typing import Array, Key, PyTree
from qdiffjax.analysis.errors.propagation import gauss_legendre
from qdiffjax.analysis.errors.runs import current, noises, step_map, step_with_outputs
from qdiffjax.compiling import canonical_convolutions
from qdiffjax.diffusion import Point, Steps, as_point
from qdiffjax.diffusion.loop import check_state
from qdiffjax.precision.quantized import Quantized, full_call, recording_call, ruled_call
from qdiffjax.sites import rules

# phi(x [*shape], x_0 [*shape], x_hat_0 [*shape]) -> scalar, of one sample; the full-precision and
# the quantized final sample are constants that it may refer to.
Functional = Callable[[Array, Array, Array], Array]


class Ledger(NamedTuple):
    """Contributions of every (site, step) to the change of a functional of the final sample.

    contributions: {site: [batch, N]} in units of the functional, signed;
    change: phi(x_hat_0) - phi(x_0) [batch] as the two runs gave it (None in the ablation ledger);
    x_0, x_hat_0: the final samples [batch, *shape] (x_hat_0 None likewise);
    xs_hat: the quantized run's states at which local errors were recorded [batch, N, *state].
    Another compilation of the same quantized sampler may differ by a last digit, flip a rounding
    there, and end elsewhere: compare with these states, not with a run of your own.

    Prints as the table of its largest cells; tables, sums and shares are of the mean over samples.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> ledger = qd.attribute(q, steps, run)
      >>> {site: c.shape for site, c in ledger.contributions.items()}  # [samples, steps]
      {'in': (8, 4)}
    """

    contributions: dict[str, Array]
    change: Array | None
    x_0: Array
    x_hat_0: Array | None
    xs_hat: Array | None = None

    def __repr__(self):
        if numbers_of(next(iter(self.contributions.values()), 0.0)) is None:
            shapes = {name: getattr(c, "shape", c) for name, c in self.contributions.items()}
            return f"Ledger without numbers yet, contributions of shapes {shapes}"
        return str(self.top())

    def _repr_html_(self) -> str:
        return self.top()._repr_html_()

    def cells(self) -> Cells:
        """Return the mean over samples, which tables and figures are made of; needs no JAX.

        Raises:
          ValueError: the ledger has no numbers, or none of a site.
        """
        arrays = [a for a in map(numbers_of, self.contributions.values()) if a is not None]
        require(arrays and len(arrays) == len(self.contributions), "ledger", got="no numbers",
                expected="contributions that were computed",
                remedy="read it outside of jit")  # fmt: skip
        names, table = tuple(self.contributions), np.stack(arrays, axis=-1)
        if self.change is None:
            return Cells(names, table.mean(0), "change of the functional", None, len(table))
        change = np.asarray(self.change, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # where nothing changed
            missed = np.nanmedian(np.abs(table.sum((1, 2)) - change) / np.abs(change))
        return Cells(names, table.mean(0), self._quantity(change), float(missed), len(table))

    def _quantity(self, change) -> str:
        error = numbers_of(self.x_hat_0) - numbers_of(self.x_0)  # type: ignore[operator]
        squared = np.mean(error**2, axis=tuple(range(1, error.ndim)))
        if np.allclose(change, squared, rtol=1e-3, atol=0):
            return "mean squared error of the final sample, in x² per element"
        return "change of the functional"

    def shares(self) -> np.ndarray:
        """Return the share of each cell in the sum of all, signed, in percent [N, S]."""
        return self.cells().shares()

    def top(self, num: int = 10) -> Table:
        """Return the cells that are largest in size, whether they raise or lower the error."""
        return self.cells().top(num)

    def by_site(self) -> Table:
        """Return the sum over steps of each site, the largest first."""
        return self.cells().by_site()

    def by_step(self) -> Table:
        """Return the sum over sites of each step, from the noise end."""
        return self.cells().by_step()

    def by_block(self, depth: int = 1) -> Table:
        """Return the sum over the sites of each block: the first `depth` folders of their paths."""
        return self.cells().by_block(depth)

    def to_dataframe(self):
        """Return a row for each cell as a pandas data frame: site, step, contribution, share.

        Raises:
          ImportError: pandas is not installed.
        """
        return self.cells().to_dataframe()


def squared_error_share(x: Array, x_0: Array, x_hat_0: Array) -> Array:
    """phi(x) = mean of x (x_hat_0 - x_0): linear, and its change is the mean squared error.

    A contribution is the projection of the cell's part of the error on the whole error.
    """
    return jnp.mean(x * (x_hat_0 - x_0))


def total(ledger: Ledger) -> Array:
    """Return the sum of all entries [batch]."""
    return jnp.sum(as_table(ledger)[1], axis=(1, 2))


def defect(ledger: Ledger) -> Array:
    """Return the completeness defect |sum of entries - change| / |change| of each sample [batch].

    Raises:
      ValueError: the ledger has no change (an ablation ledger).
    """
    require(ledger.change is not None, "ledger", got="a forecast", expected="an attribution",
            remedy="a forecast has no change to be complete about")  # fmt: skip
    assert ledger.change is not None
    return jnp.abs(total(ledger) - ledger.change) / jnp.abs(ledger.change)


def warn_of_defect(ledger: Ledger, most: float = MAX_DEFECT) -> None:
    """Warn if the entries of a ledger miss much of the change they explain; says what to do.

    Args:
      ledger: an attribution, outside of jit; of a forecast, which has no change, nothing is said.
      most: the median over samples of the defect that is good enough.
    """
    missed = ledger.cells().defect
    if missed is not None and missed > most:
        warnings.warn(
            f"ledger: got a median defect of {100 * missed:.2g} %, expected at most "
            f"{100 * most:g} %: that much of the change is not in its entries; use more nodes "
            "(max_nodes of `attribute`, num_nodes of `attribution`), or read it as a ranking.",
            stacklevel=3,
        )  # fmt: skip


def attribution(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    functional: Functional = squared_error_share,
    *,
    num_nodes: int = 2,
    quadrature: tuple[Any, Any] | None = None,
    x_0: Array | None = None,
    key: Key | None = None,
    per_call: PyTree = None,
    keep_errors: bool = False,
) -> Ledger:
    """Attribute the change of a functional to (site, step) by the homotopy adjoint.

        x^(s)_{i+1} = F_i(x^(s)_i; taps s r_i),        r_{i,l} = Q-op_l(h_hat) - op_l(h_hat)
        c_{i,l} = int_0^1 < d phi(x^(s)_0) / d tap_{i,l}, r_{i,l} > ds

    x^(0) is the full-precision run and x^(1) the quantized run, for any rule, so the entries sum
    to phi(x_hat_0) - phi(x_0) exactly, up to the quadrature (K Gauss-Legendre nodes, relative
    error O(|r|^{2K}), reported by `defect`). It is the Aumann-Shapley value, or integrated
    gradients, of the taps.

    Costs the operations of 4 + 3 K sampling runs, one more without `x_0` and two fewer with
    `keep_errors`: counted 10.1 and 8.1 at K = 2 on the shipped UNet, 10.2 and 8.2 on the DiT. On
    one core that took the time of 10 to 14 runs, at 4 samples as at 32. Memory: K networks'
    activations of one step and the stored states.

    Args:
      q: the denoiser and its quantization; sites without inputs commit no error.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      functional: phi(x, x_0, x_hat_0) -> scalar, of one sample; the last two are constants.
      num_nodes: K.
      quadrature: nodes and weights on [0, 1] as data instead, so that many nodes can be done a
        few at a time in one compilation; the contributions of such parts add up.
      x_0: final full-precision samples [batch, *shape] where they are known, which saves their run.
      key: noise of a stochastic sampler, shared by all runs.
      per_call: inputs of the quantized denoiser, leaves [N, ...].
      keep_errors: keep the recorded errors of all steps, N times the results of all sites, instead
        of recording them a second time on the way back.
    """
    check_state("x_T", x_T)
    check_callable("functional", functional, "(x, x_0, x_hat_0) -> a number")
    rule = gauss_legendre(num_nodes) if quadrature is None else quadrature
    nodes, weights = (jnp.asarray(a).astype(x_T.dtype) for a in rule)

    def sample_of(x):
        return current(x, steps)[0]

    def one(q, x_T, z, *known):
        record = recording_call(q)
        full, tapped = full_call(q), ruled_call(q, rules.perturb)

        def recorded(x_hat, t, coeffs, z, inputs):
            return step_with_outputs(record, t, coeffs, z, inputs)(x_hat)

        def forward(carry, slices):
            x, x_hat, x_nodes = carry
            t, coeffs, z, inputs = slices
            x_hat_next, r = recorded(x_hat, t, coeffs, z, inputs)
            if not known:
                x = step_map(full, t, coeffs, z)(x)
            move = jax.vmap(lambda x, s: step_map(tapped, t, coeffs, z, _scaled(r, s))(x))
            kept = r if keep_errors else None
            return (x, x_hat_next, move(x_nodes, nodes)), (x_hat, x_nodes, kept)

        def backward(adjoint, slices):
            t, coeffs, z, inputs, x_hat, x_nodes, kept = slices
            r = kept if keep_errors else recorded(x_hat, t, coeffs, z, inputs)[1]

            def pull(adjoint, x, s):
                f = lambda x, taps: step_map(tapped, t, coeffs, z, taps)(x)  # noqa: E731
                _, vjp = jax.vjp(f, x, _scaled(r, s))
                return vjp(adjoint)

            adjoint, taps_bar = jax.vmap(pull)(adjoint, x_nodes, nodes)
            return adjoint, {
                name: weights @ jax.vmap(lambda g, r=r[name]: contract(r, g, x_T.dtype))(bar)
                for name, bar in taps_bar.items()
            }

        table = (steps.times(x_T), steps.coeffs, z, q.calls(steps, per_call))
        x = steps.coeffs.start(x_T)
        x_hat = Point(x, q.start(x_T)).bare()
        first = (x, x_hat, jnp.broadcast_to(x, (len(nodes), *x.shape)))
        (x, x_hat, ends), saved = jax.lax.scan(forward, first, table)
        x_0, x_hat_0 = known[0][0] if known else sample_of(x), sample_of(x_hat)
        phi = lambda x: functional(x, x_0, x_hat_0)  # noqa: E731
        adjoints = jax.vmap(jax.grad(lambda x: phi(sample_of(x))))(ends)
        _, cells = jax.lax.scan(backward, adjoints, (*table, *saved), reverse=True)
        return cells, phi(x_hat_0) - phi(x_0), x_0, x_hat_0, as_point(saved[0]).x[:, 0]

    return Ledger(*per_sample(one, q, x_T, steps, key, *(() if x_0 is None else (x_0,))))


def inject(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    amounts: dict[str, Array],
    *,
    key: Key | None = None,
    per_call: PyTree = None,
) -> Array:
    """Return the final sample of the full-precision sampler with recorded local errors injected.

        x_{i+1} = F_i(x_i; taps amounts_{i,l} r_{i,l}),   r recorded on the quantized run

    All ones give the quantized run, all zeros the full-precision run, exactly.

    Args:
      q: the denoiser and its quantization.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      key: noise of a stochastic sampler.
      per_call: inputs of the quantized denoiser, leaves [N, ...].
      amounts: {site: [N]}, what multiplies the site's recorded error; every site of `q`.

    Returns:
      x_0 [batch, *shape].
    """
    check_state("x_T", x_T)
    check_names("amounts", amounts, q.site_inputs)
    for name, amount in amounts.items():
        check_numbers("amounts", amount, least_rank=1)
        require(jnp.shape(amount)[0] == steps.t.shape[0], "amounts",
                got=f"{jnp.shape(amount)[0]} of {name!r}", expected=f"{steps.t.shape[0]}",
                remedy="one for each step")  # fmt: skip
    record = recording_call(q)
    tapped = ruled_call(q, rules.perturb)

    def body(carry, slices):
        x, x_hat = carry
        t, coeffs, z, inputs, amount = slices
        x_hat, r = step_with_outputs(record, t, coeffs, z, inputs)(x_hat)
        taps = {name: amount[name].astype(r[name].dtype) * r[name] for name in r}
        return (step_map(tapped, t, coeffs, z, taps)(x), x_hat), None

    table = (steps.times(x_T), steps.coeffs, noises(key, steps, x_T), q.calls(steps, per_call),
             amounts)  # fmt: skip
    x = steps.coeffs.start(x_T)
    (x, _), _ = jax.lax.scan(body, (x, Point(x, q.start(x_T)).bare()), table)
    return current(x, steps)


def as_table(ledger: Ledger) -> tuple[tuple[str, ...], Array]:
    """Return the names of the sites and their contributions as one array [batch, N, num_sites]."""
    names = tuple(ledger.contributions)
    return names, jnp.stack([ledger.contributions[n] for n in names], axis=-1)


def _scaled(errors: dict[str, Array], s) -> dict[str, Array]:
    return {name: s.astype(r.dtype) * r for name, r in errors.items()}


def contract(errors, sensitivities, dtype) -> Array:
    """Return <errors, sensitivities> in the dtype of the states; bfloat16 would keep no digits."""

    def inner(error, sensitivity):
        return jnp.sum(error.astype(dtype) * sensitivity.astype(dtype))

    return functools.reduce(
        jnp.add, jax.tree.leaves(jax.tree.map(inner, errors, sensitivities))
    )  # fmt: skip


def full_run(q: Quantized, x_T, table, steps: Steps) -> tuple[Any, Any]:
    """Return the last point of the full-precision run and the points left [N, ...].

    The table holds times, coefficients, noise and inputs of the steps, leaves [N, ...].
    """

    def body(x, slices):
        t, coeffs, z, _ = slices
        return step_map(full_call(q), t, coeffs, z)(x), x

    return jax.lax.scan(body, steps.coeffs.start(x_T), table)


def zeros_of(shapes) -> Any:
    """Return zeros of the given shapes and dtypes."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def per_sample(
    one: Callable, q: Quantized, x_T: Array, steps: Steps, key: Key | None, *more: Array,
    is_map: bool = False,
) -> Any:  # fmt: skip
    """Map one(q, x_T [1, *shape], z [N, 1, *shape] or None, *more [1, ...]) over a batch's samples.

    Each sample brings its own condition with q. All at once, or with is_map one after another.
    """
    zs = noises(key, steps, x_T)
    zs = None if zs is None else jnp.moveaxis(zs, 1, 0)[:, :, None]
    table = (jax.tree.map(lambda leaf: leaf[:, None], q.cond), x_T[:, None], zs,
             *(a[:, None] for a in more))  # fmt: skip
    row_fn = canonical_convolutions(lambda cond, *row: one(q.given(cond), *row))
    return jax.lax.map(lambda row: row_fn(*row), table) if is_map else jax.vmap(row_fn)(*table)
