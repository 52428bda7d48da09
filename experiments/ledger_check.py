"""Both ledgers of a trained denoiser against brute force, cell by cell.

    python -m experiments.ledger_check

For random (site, step) cells and a random linear functional of the final sample:

  ablation     the forecast against quantizing that cell alone and rerunning the sampler, to
               first order and with the largest cells of each step exact within the network
  attribution  the entry against injecting the recorded local error of that cell: the mean of
               adding it to the full-precision run and of leaving it out of the quantized one

Also what a full ledger costs, in sampling runs of the same samples.
"""

import argparse
import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import store, subject
from qdiffjax import diffusion
from qdiffjax.analysis import ablation, ledger, propagation
from qdiffjax.diffusion import step
from qdiffjax.precision import ptq
from qdiffjax.program import (
    Quantized,
    full_call,
    prepare,
    quantized_call,
    rules,
    transform,
    uniform,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to check: widths as (weight, activation), None = full precision."""

    checkpoint: str = "fashion_unet"
    num_steps: int = 50
    num_samples: int = 8
    num_cells: int = 100
    ablations: tuple = ((8, None), (None, 8), (8, 8), (6, None), (None, 6), (6, 6))
    attributions: tuple = ((8, 8), (6, 6))
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    num_nodes: int = 2
    num_exact: int = 3
    seed: int = 0


def shorthand(weight_bits, activation_bits) -> str:
    """W8A6, W8 or A6."""
    weight = f"W{weight_bits}" if weight_bits else ""
    return weight + (f"A{activation_bits}" if activation_bits else "")


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
        return step(x, tapped(q.params, x, t, site_inputs=taps)[0], coeffs)

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
        compiled = subject.compiled
        self.full = compiled(lambda q, x: diffusion.sample(full_call(q), x, steps).xs)
        self.quantized = compiled(lambda q, x: diffusion.sample(quantized_call(q), x, steps).xs)
        phi = lambda x, *_: jnp.sum(self.g * x)  # noqa: E731
        self.ablate = {
            k: compiled(lambda q, x, k=k: ablation.forecast(q, x, steps, phi, num_exact=k))
            for k in {0, config.num_exact}
        }
        self.attribute = {
            k: compiled(lambda q, x, k=k: ledger.attribution(q, x, steps, phi, num_nodes=k))
            for k in {1, config.num_nodes}
        }
        self.rerun = compiled(lambda q, xs, start, on: ablation.rerun(q, xs, steps, start, on))
        self.inject = compiled(lambda q, a, b, start, on: inject_cell(q, a, b, steps, start, on))

    def phi(self, x) -> np.ndarray:
        """The linear functional of final samples [batch, *shape]: [batch]."""
        return np.asarray(jnp.tensordot(x, self.g, self.g.ndim))

    def denoiser_at(self, weight_bits, activation_bits) -> Quantized:
        """The denoiser at these widths; sites where nothing is quantized are left out."""
        s = self.subject
        recipe = uniform(
            s.sites, weight_bits=weight_bits, activation_bits=activation_bits, globs=s.globs
        )
        weights = prepare(s.weights, s.sites, recipe)
        q = ptq.quantize_denoiser(
            s.denoiser.eps_fn, s.denoiser.params, s.sites, recipe, weights, s.ranges
        )
        used = {n: v for n, v in q.site_inputs.items() if v.weight is not None or v.activations}
        return dataclasses.replace(q, site_inputs=used)

    def cells(self, q: Quantized) -> list[tuple[str, int]]:
        """Random (site, step) cells, the same for the same sites."""
        rng, names = np.random.default_rng(self.config.seed), list(q.site_inputs)
        picks = rng.choice(len(names) * self.config.num_steps, self.config.num_cells, replace=False)
        return [(names[p % len(names)], int(p // len(names))) for p in picks]

    def ablation(self, q: Quantized, bar):
        """Forecasts {name: [cells, samples]} and the truth [cells, samples]."""
        tables = {k: fn(q, self.x_T).contributions for k, fn in self.ablate.items()}
        xs, truth = self.full(q, self.x_T), []
        for name, i in self.cells(q):
            x_0 = self.rerun(q, xs, i, one_hot(q, name))
            truth.append(self.phi(x_0) - self.phi(xs[-1]))
            bar.update(1)
        found = {
            "first order" if k == 0 else f"{k} exact a step": np.stack(
                [np.asarray(table[name][:, i]) for name, i in self.cells(q)]
            )
            for k, table in tables.items()
        }
        return found, np.stack(truth)

    def attribution(self, q: Quantized, bar):
        """Entries {name: [cells, samples]} and the truth [cells, samples]."""
        found = self.attribute[self.config.num_nodes](q, self.x_T)
        table, xs = found.contributions, self.full(q, self.x_T)
        # The ledger's own quantized run: that of another compilation rounds differently.
        xs_hat = jnp.swapaxes(found.xs_hat, 0, 1)
        entries, truth = [], []
        for name, i in self.cells(q):
            added, without, everything = self.inject(q, xs, xs_hat, i, one_hot(q, name))
            one = self.phi(added) - self.phi(xs[-1])
            other = self.phi(everything) - self.phi(without)
            truth.append((one + other) / 2)
            entries.append(np.asarray(table[name][:, i]))
            bar.update(1)
        return {f"{self.config.num_nodes} nodes": np.stack(entries)}, np.stack(truth)

    def costs(self, q: Quantized) -> dict[str, float]:
        """CPU seconds of a full-precision run and of both ledgers, and ratios, in one sitting.

        On an accelerator the process's CPU seconds say nothing: there, wall seconds are taken.
        """
        clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
        fns = {
            "sampling_run": self.full, "quantized_run": self.quantized,
            "attribution_1_node": self.attribute[1], "ablation": self.ablate[0],
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


def run(config: Config, *, progress: bool = False):
    """Return arrays (forecast and truth of each check [cells, samples]) and rows of agreement."""
    from tqdm import tqdm

    check = Check(config)
    arrays: dict[str, np.ndarray] = {}
    rows: list[dict] = []
    num_checks = len(config.ablations) + len(config.attributions)
    with tqdm(total=config.num_cells * num_checks, disable=not progress, unit="cell") as bar:
        for kind, widths in (("ablation", config.ablations), ("attribution", config.attributions)):
            for w, a in widths:
                name = f"{kind} {shorthand(w, a)}"
                bar.set_description(name)
                found, truth = getattr(check, kind)(check.denoiser_at(w, a), bar)
                arrays[f"{name}/truth"] = truth
                for how, forecast in found.items():
                    arrays[f"{name}/{how}"] = forecast
                    row = {"ledger": kind, "how": how, "widths": shorthand(w, a)}
                    rows.append(row | agreement(forecast, truth))
    rows.append({"ledger": "cost"} | check.costs(check.denoiser_at(8, 8)))
    return arrays, rows


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ledger_check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--checkpoint", default=Config.checkpoint, help="folder or shipped name")
    parser.add_argument("--num-steps", type=int, default=Config.num_steps, help="sampler steps")
    parser.add_argument("--num-samples", type=int, default=Config.num_samples, help="samples")
    parser.add_argument("--num-cells", type=int, default=Config.num_cells, help="cells per check")
    parser.add_argument("--sites", nargs="+", default=list(Config.sites), help="globs")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--output", default="runs/ledger_check", help="folder of the results")
    args = vars(parser.parse_args(argv))
    output = args.pop("output")
    config = Config(**args | {"sites": tuple(args["sites"])})
    try:
        folder = store.check_writable(output)
        if min(config.num_steps, config.num_samples, config.num_cells) < 1:
            raise ValueError("steps, samples and cells must be at least 1.")
        arrays, rows = run(config, progress=sys.stderr.isatty())
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    store.save(folder, dataclasses.asdict(config), arrays, rows)
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))
    print(f"results in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
