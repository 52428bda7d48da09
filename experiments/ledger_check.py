"""Both ledgers of a trained denoiser against brute force, cell by cell.

    python -m experiments.ledger_check

For random (site, step) cells and a random linear functional of the final sample:

  ablation     the forecast against quantizing that cell alone and rerunning the sampler, to
               first order and with the largest cells of each step exact within the network
  attribution  the entry against injecting the recorded local error of that cell: the mean of
               adding it to the full-precision run and of leaving it out of the quantized one

Also what a full ledger costs, in sampling runs of the same samples, whose full-precision run is
there already.
"""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import old_command as command
from experiments.harness import store, subject
from qdiffjax import compiling, diffusion
from qdiffjax.analysis.errors import ablation, ledger, propagation
from qdiffjax.precision import (
    Quantized,
    full_call,
    parse_shorthand,
    quantized_call,
)
from qdiffjax.sites import rules, transform


@dataclasses.dataclass(frozen=True)
class Config:
    """What to check, at which widths."""

    checkpoint: str = "fashion_unet"
    num_steps: int = 50
    num_samples: int = 8
    num_cells: int = 100
    ablations: tuple[str, ...] = ("W8", "A8", "W8A8", "W6", "A6", "W6A6")
    attributions: tuple[str, ...] = ("W8A8", "W6A6")
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    num_nodes: int = 2
    num_exact: int = 3
    seed: int = 0


def agreement(forecast, truth) -> dict[str, float]:
    """Correlation over cells and samples, and relative root mean square error."""
    f, t = np.ravel(forecast), np.ravel(truth)
    error = float(np.sqrt(np.sum((f - t) ** 2) / np.sum(t**2)))
    return {"correlation": float(np.corrcoef(f, t)[0, 1]), "relative_error": error}


def one_hot(q: Quantized, name: str) -> dict:
    """{site: whether it is `name`} as data, so that all cells share one compilation."""
    return {site: jnp.asarray(site == name) for site in q.site_inputs}


def inject_cell(q: Quantized, xs, xs_hat, steps, start, on):
    """Final samples with the cell's recorded error added alone, left out alone, and with all.

    The run with all errors is that of xs_hat but for roundings that fall otherwise in another
    compilation, one of which moves every sample's end; so the difference is taken here.
    """
    record = transform(q.eps_fn, rules.local_errors(q.rule, follow_rule=True))
    tapped = transform(q.eps_fn, rules.perturb)

    def recorded(i):
        return record(q.params, xs_hat[i], steps.t[i], site_inputs=q.site_inputs)[1]

    def move(x, i, taps):
        t, coeffs = jax.tree.map(lambda leaf: leaf[i], (steps.t, steps.coeffs))
        return coeffs.advance(x, tapped(q.params, x, t, site_inputs=taps)[0])

    r = recorded(start)
    added = move(xs[start], start, {n: jnp.where(on[n], r[n], 0) for n in r})
    added = propagation.run_suffix(full_call(q), added, start + 1, steps)

    def body(i, xs):
        taps = recorded(i)
        return jax.vmap(lambda x: move(x, i, taps))(xs)

    left_out = {n: jnp.where(on[n], 0, r[n]) for n in r}
    both = jnp.stack([move(xs_hat[start], start, taps) for taps in (left_out, r)])
    without, everything = jax.lax.fori_loop(start + 1, steps.t.shape[0], body, both)
    return added, without, everything


class Check:
    """The compiled functions, shared by all widths of one structure."""

    def __init__(self, config: Config):
        self.config = config
        steps_of = lambda s: diffusion.ddim(s, config.num_steps)  # noqa: E731
        self.subject = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
        denoiser = self.subject.denoiser
        self.steps = diffusion.ddim(denoiser.schedule, config.num_steps)
        self.x_T = subject.noise(denoiser, config.num_samples, config.seed)
        g = jax.random.normal(jax.random.key(config.seed + 7), denoiser.config.shape, jnp.float32)
        self.g = g / jnp.sqrt(jnp.sum(g**2))
        steps = self.steps
        compiled = compiling.compiled
        self.full = compiled(lambda q, x: diffusion.sample(full_call(q), x, steps).xs)
        self.quantized = compiled(lambda q, x: diffusion.sample(quantized_call(q), x, steps).xs)
        phi = lambda x, *_: jnp.sum(self.g * x)  # noqa: E731
        self.ablate = {
            k: compiled(lambda q, x, k=k: ablation.forecast(q, x, steps, phi, num_exact=k))
            for k in {0, config.num_exact}
        }
        self.attribute = {
            k: compiled(
                lambda q, x, x_0, k=k: ledger.attribution(q, x, steps, phi, num_nodes=k, x_0=x_0)
            )
            for k in {1, config.num_nodes}
        }
        self.rerun = compiled(lambda q, xs, start, on: ablation.rerun(q, xs, steps, start, on))
        self.inject = compiled(lambda q, a, b, start, on: inject_cell(q, a, b, steps, start, on))

    def mark(self) -> str:
        """Fingerprint of what a check depends on besides its widths."""
        config = dataclasses.asdict(self.config) | {"ablations": (), "attributions": ()}
        return store.fingerprint(config, self.subject.mark())

    def phi(self, x) -> np.ndarray:
        """The linear functional of final samples [batch, *shape]: [batch]."""
        return np.asarray(jnp.tensordot(x, self.g, self.g.ndim))

    def denoiser_at(self, weight_bits, activation_bits) -> Quantized:
        """The denoiser at these widths; sites where nothing is quantized are left out."""
        q = self.subject.quantized(weight_bits, activation_bits)
        used = {n: v for n, v in q.site_inputs.items() if v.weight is not None or v.activations}
        return dataclasses.replace(q, site_inputs=used)

    def cells(self, q: Quantized) -> list[tuple[str, int]]:
        """Random (site, step) cells, the same for the same sites."""
        rng, names = np.random.default_rng(self.config.seed), list(q.site_inputs)
        picks = rng.choice(len(names) * self.config.num_steps, self.config.num_cells, replace=False)
        return [(names[p % len(names)], int(p // len(names))) for p in picks]

    def ablation(self, q: Quantized):
        """Forecasts {name: [cells, samples]} and the truth [cells, samples]."""
        tables = {k: fn(q, self.x_T).contributions for k, fn in self.ablate.items()}
        xs, truth = self.full(q, self.x_T), []
        for name, i in self.cells(q):
            x_0 = self.rerun(q, xs, i, one_hot(q, name))
            truth.append(self.phi(x_0) - self.phi(xs[-1]))
        found = {
            "first order" if k == 0 else f"{k} exact a step": np.stack(
                [np.asarray(table[name][:, i]) for name, i in self.cells(q)]
            )
            for k, table in tables.items()
        }
        return found, np.stack(truth)

    def attribution(self, q: Quantized):
        """Entries {name: [cells, samples]} and the truth [cells, samples]."""
        xs = self.full(q, self.x_T)
        found = self.attribute[self.config.num_nodes](q, self.x_T, xs[-1])
        table = found.contributions
        # The ledger's own quantized run: that of another compilation rounds differently.
        xs_hat = jnp.swapaxes(found.xs_hat, 0, 1)
        entries, truth = [], []
        for name, i in self.cells(q):
            added, without, everything = self.inject(q, xs, xs_hat, i, one_hot(q, name))
            one = self.phi(added) - self.phi(xs[-1])
            other = self.phi(everything) - self.phi(without)
            truth.append((one + other) / 2)
            entries.append(np.asarray(table[name][:, i]))
        return {f"{self.config.num_nodes} nodes": np.stack(entries)}, np.stack(truth)

    def costs(self, q: Quantized) -> dict[str, float]:
        """CPU seconds of a full-precision run and of both ledgers, and ratios, in one sitting.

        On an accelerator the process's CPU seconds say nothing: there, wall seconds are taken.
        """
        clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
        x_0 = self.full(q, self.x_T)[-1]
        fns = {
            "sampling_run": self.full, "quantized_run": self.quantized,
            "attribution_1_node": lambda q, x: self.attribute[1](q, x, x_0),
            "ablation": self.ablate[0],
            "ablation_exact": self.ablate[self.config.num_exact],
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in fns}
        for _ in range(4):
            for name, fn in fns.items():
                start = clock()
                jax.block_until_ready(fn(q, self.x_T))
                seconds[name].append(clock() - start)
        best = {name: float(np.median(times[1:])) for name, times in seconds.items()}
        num_cells = len(q.site_inputs) * self.config.num_steps
        # Rerunning a cell needs only the steps from its own on: half a run on average.
        brute = num_cells / 2
        ratios = {f"{n}_in_runs": best[n] / best["sampling_run"] for n in best}
        shares = {f"{n}_over_brute_force": ratios[f"{n}_in_runs"] / brute
                  for n in ("attribution_1_node", "ablation", "ablation_exact")}  # fmt: skip
        return {f"{n}_seconds": v for n, v in best.items()} | ratios | shares


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "num_steps": "sampler steps",
    "num_samples": "samples",
    "num_cells": "cells per check",
    "ablations": "widths of the ablation checks",
    "attributions": "widths of the attribution checks",
    "sites": "globs of the sites to quantize",
    "num_nodes": "quadrature nodes of the attribution ledger",
    "num_exact": "largest cells of each step that are exact within the network",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    for name in ("num_steps", "num_samples", "num_cells", "num_nodes", "num_exact"):
        if getattr(config, name) < 1:
            raise ValueError(f"got {name} = {getattr(config, name)}, expected at least 1.")
    for text in (*config.ablations, *config.attributions):
        parse_shorthand(text)


def run(config: Config, **options):
    """Return arrays (forecast and truth of each check [cells, samples]) and rows of agreement.

    Options as `command.parts`.
    """
    check(config)
    study = Check(config)
    kinds = {f"ablation {w}": w for w in config.ablations}
    kinds |= {f"attribution {w}": w for w in config.attributions} | {"cost": "W8A8"}

    def measure(part: str):
        kind, q = part.split()[0], study.denoiser_at(*parse_shorthand(kinds[part]))
        if kind == "cost":
            return {}, [{"ledger": "cost"} | study.costs(q)]
        found, truth = getattr(study, kind)(q)
        rows = [{"ledger": kind, "how": how, "widths": kinds[part]} | agreement(forecast, truth)
                for how, forecast in found.items()]  # fmt: skip
        return {"truth": truth} | found, rows

    found = command.parts(kinds, measure, study.mark(), **options)
    return command.by_part(found), [row for _, rows in found.values() for row in rows]


def print_rows(rows: list[dict]) -> None:
    """Print a line for each check, then what a ledger costs."""
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))


EXPERIMENT = command.Experiment(
    "ledger_check", __doc__ or "", Config, HELP, check, run, lambda folder: None, print_rows
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())
