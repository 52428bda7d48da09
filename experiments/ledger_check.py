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
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import compiling, diffusion, results
from qdiffjax.analysis.errors import ablation, ledger, propagation
from qdiffjax.precision import Quantized, full_call, parse_shorthand, quantized_call
from qdiffjax.sites import rules, transform


@dataclasses.dataclass(frozen=True)
class Config:
    """What to check, at which widths."""

    checkpoint: str = subject.checkpoint()
    num_steps: int = option(50, "Steps of DDIM.", least=1)
    num_samples: int = option(8, "Number of samples.", least=1)
    num_cells: int = option(100, "Cells of each check.", least=1)
    ablations: tuple[str, ...] = option(
        ("W8", "A8", "W8A8", "W6", "A6", "W6A6"), "Widths of the ablation checks.",
        each=parse_shorthand,
    )  # fmt: skip
    attributions: tuple[str, ...] = option(
        ("W8A8", "W6A6"), "Widths of the attribution checks.", each=parse_shorthand
    )
    sites: tuple[str, ...] = option(subject.ALL_BUT_LAST, "Globs of the sites to quantize.")
    num_nodes: int = option(2, "Quadrature nodes of the attribution ledger.", least=1, most=64)
    num_exact: int = option(
        3, "Largest cells of each step that are exact within the network.", least=1
    )
    seed: int = command.seed()


def agreement(forecast, truth) -> dict[str, float]:
    """Return correlation over cells and samples, and relative root mean square error."""
    f, t = np.ravel(forecast), np.ravel(truth)
    error = float(np.sqrt(np.sum((f - t) ** 2) / np.sum(t**2)))
    return {"correlation": float(np.corrcoef(f, t)[0, 1]), "relative_error": error}


def one_hot(q: Quantized, name: str) -> dict:
    """Return {site: whether it is `name`} as data, so that all cells share one compilation."""
    return {site: jnp.asarray(site == name) for site in q.site_inputs}


def inject_cell(q: Quantized, xs, xs_hat, steps, start, on):
    """Return final samples with the cell's recorded error added alone, left out alone, and all.

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


class Context(NamedTuple):
    """What all checks share, compiled once for all widths of one structure.

    functional: a random direction [*shape] of norm 1; full, quantized: (q, x_T) -> xs; forecasts:
    by the number of exact cells; attributions: by the number of nodes; rerun, inject: of one cell.
    """

    config: Config
    subject: subject.Subject
    x_T: jax.Array
    functional: jax.Array
    full: Callable
    quantized: Callable
    forecasts: dict[int, Callable]
    attributions: dict[int, Callable]
    rerun: Callable
    inject: Callable

    def read(self, x) -> np.ndarray:
        """Return the linear functional of final samples [batch, *shape]: [batch]."""
        return np.asarray(jnp.tensordot(x, self.functional, self.functional.ndim))


def prepare(config: Config) -> Context:
    """Load the network, calibrate it and compile what the checks run."""
    steps_of = lambda schedule: diffusion.ddim(schedule, config.num_steps)  # noqa: E731
    study = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser, steps = study.denoiser, steps_of(study.denoiser.schedule)
    g = jax.random.normal(jax.random.key(config.seed + 7), denoiser.shape, jnp.float32)
    g = g / jnp.sqrt(jnp.sum(g**2))
    phi = lambda x, *_: jnp.sum(g * x)  # noqa: E731
    compiled = compiling.compiled
    return Context(
        config, study, subject.noise(denoiser, config.num_samples, config.seed), g,
        compiled(lambda q, x: diffusion.sample(full_call(q), x, steps).xs),
        compiled(lambda q, x: diffusion.sample(quantized_call(q), x, steps).xs),
        {k: compiled(lambda q, x, k=k: ablation.forecast(q, x, steps, phi, num_exact=k))
         for k in {0, config.num_exact}},
        {k: compiled(lambda q, x, x_0, k=k: ledger.attribution(q, x, steps, phi, num_nodes=k,
                                                               x_0=x_0))
         for k in {1, config.num_nodes}},
        compiled(lambda q, xs, start, on: ablation.rerun(q, xs, steps, start, on)),
        compiled(lambda q, a, b, start, on: inject_cell(q, a, b, steps, start, on)),
    )  # fmt: skip


def draw_cells(config: Config, q: Quantized) -> list[tuple[str, int]]:
    """Draw random (site, step) cells, the same for the same sites."""
    rng, names = np.random.default_rng(config.seed), list(q.site_inputs)
    picks = rng.choice(len(names) * config.num_steps, config.num_cells, replace=False)
    return [(names[p % len(names)], int(p // len(names))) for p in picks]


def check_ablation(c: Context, q: Quantized) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return forecasts {name: [cells, samples]} and the truth [cells, samples]."""
    tables = {k: fn(q, c.x_T).contributions for k, fn in c.forecasts.items()}
    xs, cells = c.full(q, c.x_T), draw_cells(c.config, q)
    end = c.read(xs[-1])
    truth = [c.read(c.rerun(q, xs, i, one_hot(q, name))) - end for name, i in cells]
    forecasts = {
        f"{k} exact a step" if k else "first order": _entries(table, cells)
        for k, table in tables.items()
    }
    return forecasts, np.stack(truth)


def check_attribution(c: Context, q: Quantized) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return entries {name: [cells, samples]} and the truth [cells, samples]."""
    xs, cells = c.full(q, c.x_T), draw_cells(c.config, q)
    attribution = c.attributions[c.config.num_nodes](q, c.x_T, xs[-1])
    # The ledger's own quantized run: that of another compilation rounds differently.
    xs_hat, truth = jnp.swapaxes(attribution.xs_hat, 0, 1), []
    for name, i in cells:
        added, without, everything = c.inject(q, xs, xs_hat, i, one_hot(q, name))
        gaps = c.read(added) - c.read(xs[-1]), c.read(everything) - c.read(without)
        truth.append((gaps[0] + gaps[1]) / 2)
    entries = _entries(attribution.contributions, cells)
    return {f"{c.config.num_nodes} nodes": entries}, np.stack(truth)


def _entries(table, cells) -> np.ndarray:
    return np.stack([np.asarray(table[name][:, i]) for name, i in cells])


def costs(c: Context, q: Quantized) -> dict[str, float]:
    """Return CPU seconds of a full-precision run and of both ledgers, and ratios, in one sitting.

    On an accelerator the process's CPU seconds say nothing: there, wall seconds are taken.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    x_0 = c.full(q, c.x_T)[-1]
    fns = {
        "sampling_run": c.full, "quantized_run": c.quantized,
        "attribution_1_node": lambda q, x: c.attributions[1](q, x, x_0),
        "ablation": c.forecasts[0], "ablation_exact": c.forecasts[c.config.num_exact],
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for _ in range(4):
        for name, fn in fns.items():
            start = clock()
            jax.block_until_ready(fn(q, c.x_T))
            seconds[name].append(clock() - start)
    best = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    # Rerunning a cell needs only the steps from its own on: half a run on average.
    brute = len(q.site_inputs) * c.config.num_steps / 2
    ratios = {f"{n}_in_runs": best[n] / best["sampling_run"] for n in best}
    shares = {f"{n}_over_brute_force": ratios[f"{n}_in_runs"] / brute
              for n in ("attribution_1_node", "ablation", "ablation_exact")}  # fmt: skip
    return {f"{n}_seconds": v for n, v in best.items()} | ratios | shares


CHECKS = {"ablation": check_ablation, "attribution": check_attribution}


def run(config: Config, **options):
    """Return arrays (forecast and truth of each check [cells, samples]) and rows of agreement.

    Options as `command.parts`.
    """
    context = prepare(config)
    widths = {f"ablation {w}": w for w in config.ablations}
    widths |= {f"attribution {w}": w for w in config.attributions} | {"cost": "W8A8"}

    def measure(part: str) -> tuple[dict[str, Any], list]:
        kind, bits = part.split()[0], parse_shorthand(widths[part])
        q = subject.without_idle_sites(context.subject.quantized(*bits))
        if kind == "cost":
            return {}, [{"ledger": "cost"} | costs(context, q)]
        forecasts, truth = CHECKS[kind](context, q)
        rows = [{"ledger": kind, "how": name, "widths": widths[part]} | agreement(forecast, truth)
                for name, forecast in forecasts.items()]  # fmt: skip
        return {"truth": truth} | forecasts, rows

    settings = dataclasses.asdict(config) | {"ablations": (), "attributions": ()}
    mark = results.fingerprint(settings, context.subject.mark())
    done = command.parts(widths, measure, mark, **options)
    return command.by_part(done), [row for _, rows in done.values() for row in rows]


def table(rows):
    """Yield a line for each check, then what a ledger costs."""
    for row in rows:
        yield "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items())


EXPERIMENT = command.experiment(Config, run, table=table)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))
