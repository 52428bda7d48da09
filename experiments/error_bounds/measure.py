"""The columns of `experiments.error_bounds`, each compiled once for all widths."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import subject
from qdiffjax import comparisons, diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.analysis.errors import ledger, prediction, runs
from qdiffjax.analysis.gains import Gains, step_gains
from qdiffjax.compiling import compiled
from qdiffjax.precision import Quantized, full_call, quantized_call

Part = tuple[dict[str, Any], dict[str, Any]]  # arrays and a row


def prepare(config) -> subject.FullRun:
    """Calibrate, and run in full precision.

    Raises:
      ValueError: the samples are not finite.
    """
    sampler = functools.partial(subject.SAMPLERS[config.sampler], num_steps=config.num_steps)
    full = subject.run_in_full(config, sampler)
    if not bool(jnp.isfinite(full.run.xs).all()):
        raise ValueError("the full-precision samples are not finite; the checkpoint is unusable")
    return full._replace(subject=full.subject.widened(config.edge_margin))


def common(full: subject.FullRun) -> dict[str, np.ndarray]:
    """Return the arrays that do not depend on the width."""
    return {"t": np.asarray(full.steps.t), "samples": np.asarray(full.run.xs[-1, :8]),
            "signal_rms": np.asarray(prediction.root_mean_square(full.run.xs))}  # fmt: skip


def columns(config, full: subject.FullRun) -> dict[str, Callable[[Any, comparisons.Run], Part]]:
    """Return the columns by name: (q, measured run) -> (arrays, row).

    Each is compiled at its first width, for all later ones.
    """
    here, steps, key, x_T, run_in_full = full
    xs, denoiser, seed = run_in_full.states, here.denoiser, config.seed
    sites = [site.name for site in here.sites]
    # A chain in discrete times, whose last step, which has no noise, is not its only one.
    is_discrete = isinstance(denoiser.schedule, diffusion.DiscreteSchedule)
    has_companion = is_discrete and config.num_steps > 1
    companion = functools.partial(diffusion.ddim, denoiser.schedule, config.num_steps, eta=1.0)
    num_steps = min(config.num_steps, config.max_fan_steps)
    fan_steps = subject.SAMPLERS[config.sampler](denoiser.schedule, num_steps)
    num_ledger, num_bound, num_fan = (
        min(num, config.num_samples)
        for num in (config.num_ledger_samples, config.num_bound_samples, config.num_fan_samples)
    )
    predict = compiled(lambda q, xs: comparisons.predicted(q, xs, steps))
    propagate = compiled(lambda q, run: comparisons.propagated(q, run, steps))
    attribute = compiled(lambda q, x, x_0, *quadrature: ledger.attribution(
        q, x, steps, quadrature=quadrature, x_0=x_0, key=key
    ))  # fmt: skip
    gains = compiled(lambda denoiser, xs: step_gains(
        full_call(Quantized(denoiser, {})), xs, steps, key=jax.random.key(seed + 2),
        num_iterations=4,
    ))  # fmt: skip
    some = denoiser.at(slice(num_bound))
    full_gains = functools.cache(lambda: gains(some, xs[:, :num_bound]))
    path_kl = compiled(lambda q, x, key: divergences.path_kl(
        full_call(q), quantized_call(q), x, companion(), key=key, per_call=q.calls(companion()),
        state=q.start(x)
    ))  # fmt: skip
    lower = compiled(divergences.w2_lower)
    roundings = comparisons.network_roundings(denoiser.sites())
    bound = jax.jit(lambda run, parts, gains: comparisons.bounded(
        run, parts, gains, steps, num_roundings=roundings
    ))  # fmt: skip
    fan = compiled(lambda q, x: comparisons.fanned(q, x, fan_steps, key=key))

    def bounds(q, run):
        run, q = run.first(num_bound), q.at(slice(num_bound))
        ends = full_gains(), gains(some, run.xs_hat)  # of each segment
        larger = jax.tree.map(jnp.maximum, *ends)
        return bounds_column(bound(run, propagate(q, run), larger.norms), larger, x_T[0].size)

    def attribution(q, run):
        known = q.at(slice(num_ledger)), x_T[:num_ledger], run_in_full.x_0[:num_ledger]
        whole, num_nodes = comparisons.attributed(functools.partial(attribute, *known),
                                              tolerance=config.tolerance,
                                              max_nodes=config.max_nodes)  # fmt: skip
        return ledger_column(whole, num_nodes, sites)

    def distances(q, run):
        ends = run_in_full.x_0, steps.coeffs.current(run.xs_hat[-1])
        arrays, row = distance_column(*ends, lower(*ends, jax.random.key(seed + 4)))
        if not has_companion:
            return arrays, row | dict.fromkeys(("path_kl", "path_kl_low", "path_kl_high"))
        terms = path_kl(q.at(slice(num_ledger)), x_T[:num_ledger], jax.random.key(seed + 3))
        kl = estimates.mean_interval(jnp.sum(terms, axis=0))
        return arrays | {"path_kl_terms": jnp.mean(terms, axis=1)}, row | interval("path_kl", kl)

    columns = {
        "error": lambda q, run: error_column(run, steps),
        "prediction": lambda q, run: prediction_column(predict(q, xs), run, steps,
                                                       jax.random.key(seed + 5)),
        "bounds": bounds, "ledger": attribution, "divergences": distances,
    }  # fmt: skip
    if num_fan:
        columns["exact fan"] = lambda q, run: fan_column(
            fan_steps, *fan(q.at(slice(num_fan)), x_T[:num_fan])
        )
    return columns


def error_column(run: comparisons.Run, steps: diffusion.Steps) -> Part:
    """Return the measured error along the run."""
    errors = comparisons.sampled(run.errors, steps)
    arrays = {
        "error_rms": prediction.root_mean_square(errors),
        "samples_hat": steps.coeffs.current(run.xs_hat[-1])[:8],
        "final_error_norms": runs.norms(errors)[-1],
    }  # fmt: skip
    return arrays, {"measured_rmse": arrays["error_rms"][-1]}


@jax.jit
def over_measured(predicted, measured, key) -> estimates.Estimate:
    """Return the ratio of root mean squares of norms [batch], with its interval over samples."""
    return estimates.bootstrap(
        lambda p, m: jnp.sqrt(jnp.sum(p**2) / jnp.sum(m**2)), predicted, measured, key=key, num=1000
    )


def prediction_column(predicted: comparisons.Predicted, run: comparisons.Run, steps, key) -> Part:
    """Return the predicted error, and its ratio to the measured one with an interval."""
    errors, by_first, measured = (comparisons.sampled(states, steps)
                                  for states in (*predicted, run.errors))  # fmt: skip
    rms, first = map(prediction.root_mean_square, (errors, by_first))
    norms, measured = (runs.norms(values[-1:])[0] for values in (errors, measured))
    row = {"predicted_rmse": rms[-1], "first_order_rmse": first[-1],
           **interval("predicted_over_measured", over_measured(norms, measured, key))}  # fmt: skip
    return {"predicted_rms": rms, "first_order_rms": first, "predicted_final_norms": norms}, row


def bounds_column(bounded: comparisons.Bounded, gains: Gains, size: int) -> Part:
    """Return both bounds along the run, and by how much they exceed the error at its end.

    size: number of elements of a sample; root mean squares are over elements and these samples.
    """
    arrays = {
        "measured_norms": bounded.measured, "gronwall": bounded.gronwall,
        "remainder": bounded.remainder, "local_norms": bounded.local,
        "gains": gains.norms, "gain_gauge": gains.gauge,
    }  # fmt: skip
    row: dict[str, Any] = {"first_order_relative_error": jnp.median(bounded.miss)}
    ratios = bounded.over_measured()
    for name, ratio in zip(("bound", "remainder"), ratios, strict=True):
        row |= {f"{name}_over_measured_min": jnp.min(ratio[-1]),
                f"{name}_over_measured_median": jnp.median(ratio[-1])}  # fmt: skip
    row["bounds_finite_fraction"] = jnp.mean(jnp.isfinite(bounded.gronwall[-1]))
    rms = {name: float(jnp.sqrt(jnp.mean(norms[-1] ** 2) / size))
           for name, norms in bounded.norms().items()}  # fmt: skip
    tightest = min((name for name in rms if name != "measured"), key=rms.__getitem__)
    row |= {"bounded_rmse": rms["measured"], "tightest_bound_rmse": rms[tightest],
            "tightest_bound": tightest}  # fmt: skip
    row["bounds_hold"] = all(bounded.holds())
    return arrays, row


def ledger_column(whole: ledger.Ledger, num_nodes: int, sites: list[str]) -> Part:
    """Return the mean ledger [steps, sites], sites in the order of the network, and defects."""
    names, table = ledger.as_table(whole)
    in_order = [name for name in sites if name in names]
    table = table[..., np.array([names.index(name) for name in in_order])]
    defects = ledger.defect(whole)
    arrays = {"ledger": jnp.mean(table, axis=0), "sites": np.array(in_order),
              "ledger_defects": defects}  # fmt: skip
    return arrays, {"exact_relative_residual": jnp.median(defects), "num_nodes": num_nodes}


def distance_column(x_0, x_hat_0, w2_lower) -> Part:
    """Return the bracket of W2 between the laws of final samples [batch, *shape]."""
    return {}, interval("w2", divergences.w2_coupling(x_0, x_hat_0)) | {"w2_lower": w2_lower}


def fan_column(steps: diffusion.Steps, terms, error) -> Part:
    """Return the exact fan [steps, batch, ...] on its own grid, and its defect."""
    terms, error = comparisons.sampled(terms, steps), steps.coeffs.current(error)
    miss = runs.norms((terms.sum(0) - error)[None]) / runs.norms(error[None])
    return {"fan_norms": runs.norms(terms), "fan_t": steps.t}, {
        "fan_relative_residual": jnp.median(miss)
    }


def interval(name: str, estimate: estimates.Estimate) -> dict[str, Any]:
    """Return the columns of a number and its interval."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
