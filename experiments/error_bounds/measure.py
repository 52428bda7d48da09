"""The measurements behind `experiments.error_bounds`: each compiled once for all widths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import store, subject
from qdiffjax import compiling, diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import ledger, prediction, propagation, runs
from qdiffjax.precision import calibration, full_call, quantized_call

NUM_STAGES = 6
SLACK = 1 + 1e-4  # float32 rounding of norms that are compared


class Study:
    """One denoiser and sampler; holds what all widths share, and the compiled functions."""

    def __init__(self, config):
        self.config = config
        make = subject.SAMPLERS[config.sampler]
        steps_of = lambda schedule: make(schedule, config.num_steps)  # noqa: E731
        found = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
        ranges = calibration.widened(found.ranges, ("input", "output"), config.edge_margin)
        self.subject = dataclasses.replace(found, ranges=ranges)
        denoiser = self.subject.denoiser
        schedule = denoiser.schedule
        self.steps = steps_of(schedule)
        self.companion = diffusion.ddim(schedule, config.num_steps, eta=1.0)
        self.fan_steps = make(schedule, min(config.num_steps, config.max_fan_steps))
        self.x_T = subject.noise(denoiser, config.num_samples, config.seed)
        is_noisy = bool(np.any(np.asarray(self.steps.coeffs.noise) > 0))
        self.key = jax.random.key(config.seed + 1) if is_noisy else None
        full = diffusion.bind(denoiser.eps_fn, denoiser.params)
        run = compiling.compiled(lambda x: diffusion.sample(full, x, self.steps, key=self.key).xs)
        self.xs = run(self.x_T)
        if not bool(jnp.isfinite(self.xs).all()):
            raise ValueError(
                "the full-precision samples are not finite; the checkpoint is unusable"
            )
        self._compile()

    def mark(self) -> str:
        """Fingerprint of everything but the list of widths."""
        config = dataclasses.asdict(self.config)
        for name in ("weight_bits", "activation_bits"):
            config.pop(name)
        return store.fingerprint(config, self.subject.mark())

    def common(self) -> dict[str, np.ndarray]:
        """Arrays that do not depend on the width."""
        return {
            "t": np.asarray(self.steps.t),
            "signal_rms": np.asarray(prediction.root_mean_square(self.xs)),
            "samples": np.asarray(self.xs[-1, :8]),
        }

    def _compile(self):
        steps, key = self.steps, self.key

        def run(q, x):
            g = quantized_call(q)

            def with_eps(x, t, inputs):
                eps, _ = g(x, t, inputs)
                return eps, eps

            return diffusion.sample(with_eps, x, steps, key=key)

        self.run = compiling.compiled(run)
        self.predict = compiling.compiled(lambda q, xs: [
            fn(q, xs, steps) for fn in (prediction.predict_errors, prediction.predict_first_order)
        ])  # fmt: skip
        self.attribute = compiling.compiled(
            lambda q, x, x_0, *rule: ledger.attribution(
                q, x, steps, quadrature=rule, x_0=x_0, key=key
            )
        )
        self.along = compiling.compiled(self._along)
        self.gains = compiling.compiled(
            lambda q, xs: pathwise.step_gains(
                full_call(q), xs, steps, key=jax.random.key(self.config.seed + 2), num_iterations=4
            )
        )
        self.path_kl = compiling.compiled(
            lambda q, x, key: divergences.path_kl(
                full_call(q), quantized_call(q), x, self.companion, key=key
            )
        )
        self.fan = compiling.compiled(self._fan)
        self.lower = compiling.compiled(divergences.w2_lower)
        self.full_gains: pathwise.Gains | None = None

    def _along(self, q, xs, xs_hat, eps_hat):
        """A-posteriori local errors, their first-order propagation, and its remainders."""
        full = full_call(q)
        recorded = lambda x, t, eps: (eps, None)  # noqa: E731
        e = runs.local_errors(full, recorded, xs_hat, self.steps, per_call=eps_hat)
        return e, *propagation.propagate_with_remainders(full, xs, xs_hat, self.steps, e)

    def _fan(self, q, x):
        full, steps = full_call(q), self.fan_steps
        pair = runs.couple(full, quantized_call(q), x, steps, key=self.key)
        return propagation.fan(full, pair.xs_hat, steps, key=self.key), pair.errors[-1]

    def measure(self, weight_bits: int, activation_bits: int, stage):
        """Return (arrays, row) of one pair of widths; `stage(what)` is called six times."""
        q = self.subject.quantized(weight_bits, activation_bits)
        stage("sampling")
        quantized = self.run(q, self.x_T)
        xs_hat = quantized.xs
        errors = xs_hat - self.xs
        row: dict = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        arrays = {
            "error_rms": np.asarray(prediction.root_mean_square(errors)),
            "final_error_norms": np.asarray(runs.norms(errors)[-1]),
            "samples_hat": np.asarray(xs_hat[-1, :8]),
        }
        for what, part in (
            ("prediction", self._prediction),
            ("bounds", self._bounds),
            ("ledger", self._ledger),
            ("divergences", self._divergences),
            ("exact fan", self._exact_fan),
        ):
            stage(what)
            new_arrays, new_row = jax.device_get(part(q, quantized))
            arrays |= new_arrays
            row |= new_row
        row["measured_rmse"] = float(arrays["error_rms"][-1])
        return {k: np.asarray(v) for k, v in arrays.items()}, jax.tree.map(_python, row)

    def _prediction(self, q, quantized):
        errors, first = self.predict(q, self.xs)
        rms, first = map(prediction.root_mean_square, (errors, first))
        norms = runs.norms(errors)[-1]
        measured = runs.norms(quantized.xs[-1:] - self.xs[-1:])[0]
        ratio = estimates.bootstrap(
            lambda p, m: jnp.sqrt(jnp.sum(p**2) / jnp.sum(m**2)), norms, measured,
            key=jax.random.key(self.config.seed + 5), num=1000,
        )  # fmt: skip
        row = {
            "predicted_rmse": rms[-1], "first_order_rmse": first[-1],
            "predicted_over_measured": ratio.value, "predicted_over_measured_low": ratio.low,
            "predicted_over_measured_high": ratio.high,
        }  # fmt: skip
        arrays = {"predicted_rms": rms, "first_order_rms": first, "predicted_final_norms": norms}
        return arrays, row

    def _bounds(self, q, quantized):
        n = min(self.config.num_bound_samples, self.config.num_samples)
        xs, xs_hat = self.xs[:, :n], quantized.xs[:, :n]
        e, first, rho = self.along(q, xs, xs_hat, quantized.outputs[:, :n])
        gains = self._segment_gains(q, xs, xs_hat)
        measured = runs.norms(xs_hat - xs)
        gronwall = pathwise.gronwall(gains.norms, runs.norms(e))
        remainder, _ = pathwise.remainder_bound(gains.norms, runs.norms(rho), first)
        miss = runs.norms((first - (xs_hat - xs))[-1:])[0] / measured[-1]
        ratio = {"gronwall": gronwall[1:] / measured[1:], "remainder": remainder[1:] / measured[1:]}
        held = [np.all(np.asarray(r) * SLACK >= 1) for r in ratio.values()]
        arrays = {
            "measured_norms": measured, "gronwall": gronwall, "remainder": remainder,
            "local_norms": runs.norms(e), "gains": gains.norms, "gain_gauge": gains.gauge,
        }  # fmt: skip
        finite = jnp.isfinite(gronwall[-1])
        row = {
            "first_order_relative_error": jnp.median(miss),
            "bound_over_measured_min": jnp.min(ratio["gronwall"][-1]),
            "bound_over_measured_median": jnp.median(ratio["gronwall"][-1]),
            "remainder_over_measured_min": jnp.min(ratio["remainder"][-1]),
            "remainder_over_measured_median": jnp.median(ratio["remainder"][-1]),
            "bounds_finite_fraction": jnp.mean(finite),
            "bounds_hold": bool(all(held)),
        }
        return arrays, row

    def _segment_gains(self, q, xs, xs_hat) -> pathwise.Gains:
        """Largest gains at both ends of each segment; the first end serves all widths."""
        if self.full_gains is None:
            self.full_gains = self.gains(q, xs)
        return jax.tree.map(jnp.maximum, self.full_gains, self.gains(q, xs_hat))

    def _ledger(self, q, quantized):
        n = min(self.config.num_ledger_samples, self.config.num_samples)
        for num_nodes in (2, 4, 6, 8):
            found = self._attribution(q, self.x_T[:n], num_nodes)
            miss = jnp.median(ledger.defect(found))
            if miss <= self.config.tolerance or num_nodes + 2 > self.config.max_nodes:
                break
        names, table = ledger.as_table(found)
        in_order = [s.name for s in self.subject.sites if s.name in names]
        table = table[..., np.array([names.index(name) for name in in_order])]
        arrays = {"ledger": jnp.mean(table, axis=0), "sites": np.array(in_order),
                  "ledger_defects": ledger.defect(found)}  # fmt: skip
        return arrays, {"exact_relative_residual": miss, "num_nodes": num_nodes}

    def _attribution(self, q, x_T, num_nodes: int) -> ledger.Ledger:
        """The ledger with num_nodes nodes, two at a time, so that any number compiles once."""
        nodes, weights = propagation.gauss_legendre(num_nodes)
        pairs = [slice(i, i + 2) for i in range(0, num_nodes, 2)]
        found = [
            self.attribute(q, x_T, self.xs[-1, : len(x_T)], nodes[at], weights[at]) for at in pairs
        ]
        parts = [f.contributions for f in found]
        return found[0]._replace(contributions=jax.tree.map(lambda *c: sum(c), *parts))

    def _divergences(self, q, quantized):
        n = min(self.config.num_ledger_samples, self.config.num_samples)
        terms = self.path_kl(q, self.x_T[:n], jax.random.key(self.config.seed + 3))
        kl = estimates.mean_interval(jnp.sum(terms, axis=0))
        upper = divergences.w2_coupling(self.xs[-1], quantized.x_0)
        lower = self.lower(self.xs[-1], quantized.x_0, jax.random.key(self.config.seed + 4))
        row = {
            "path_kl": kl.value, "path_kl_low": kl.low, "path_kl_high": kl.high,
            "w2": upper.value, "w2_low": upper.low, "w2_high": upper.high, "w2_lower": lower,
        }  # fmt: skip
        return {"path_kl_terms": jnp.mean(terms, axis=1)}, row

    def _exact_fan(self, q, quantized):
        n = min(self.config.num_fan_samples, self.config.num_samples)
        terms, error = self.fan(q, self.x_T[:n])
        miss = runs.norms((terms.sum(0) - error)[None]) / runs.norms(error[None])
        arrays = {"fan_norms": runs.norms(terms), "fan_t": self.fan_steps.t}
        return arrays, {"fan_relative_residual": jnp.median(miss)}


def _python(value):
    return value.item() if hasattr(value, "item") else value
