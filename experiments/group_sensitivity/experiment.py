"""Which parts of a network are sensitive: each kind of operation quantized alone.

    python -m experiments.group_sensitivity                    the shipped UNet
    python -m experiments.group_sensitivity --checkpoint fashion_dit
    python -m experiments.group_sensitivity --values           stored values too

Attention, convolutions by resolution, MLPs, embeddings, the ends: weights and activations of one
group at a time are rounded, all else is full precision, and the samples are compared with the
full-precision ones of the same noise. Normalization has no products; there the parameters (scale
and shift) are rounded, with one range per array, its statistics are not. With `--values` what is
stored between products is rounded, too, a group for each kind of it: sums of branches (`residual`),
the parts of concatenations (`skip`), results of softmax and of normalization. One row a group and
width:

  error       RMS error of a sample, median over samples, and 10 to 90 %
  share       of the sum over groups of the squared median
  MACs        share of the network's multiplications
  per MAC     share over MACs: above one, more sensitive than its size
"""

import dataclasses
import fnmatch
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.group_sensitivity import plots
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import diffusion, results
from qdiffjax.analysis.errors import prediction
from qdiffjax.compiling import compiled
from qdiffjax.precision import check_bits, gated_call
from qdiffjax.sites import Site

# The first that matches; of a UNet with two resolutions, and of a DiT.
GROUPS = {
    "input": ("input",), "output": ("output",), "last layer": ("conv_out/*", "head/out/*"),
    "attention products": ("*/dot_*",), "attention projections": ("*attn*", "*attention*"),
    "time and modulation": ("*time*", "*modulation*"), "MLP": ("*/mlp/*",),
    "first layer": ("conv_in/*", "patchify/*"),
    "convolutions, high resolution": ("down_0_block*", "up_0_*", "up_1_pool/*"),
    "convolutions, low resolution": ("*",),
}  # fmt: skip
NORMS = "normalization parameters"
ALL, ALL_STORED = "all", "all stored values"  # of the sites of a default listing, and on request


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    bits: tuple[int, ...] = option((8, 6, 4), "Widths of weights and activations.", each=check_bits)
    num_steps: int = option(20, "Steps of DDIM.", least=1)
    num_samples: int = option(32, "Number of samples.", least=2)
    values: bool = option(False, "Round stored values too, a group for each kind.")
    seed: int = command.seed()


def group_of(site: Site) -> str:
    """Return the group of a site: the kind of a stored value, or what its name says."""
    if site.is_value:
        return f"stored: {site.kind}"
    return next(group for group, globs in GROUPS.items()
                if any(fnmatch.fnmatchcase(site.name, glob) for glob in globs))  # fmt: skip


def round_norms(params, bits: int):
    """Return params with the arrays of normalization layers rounded, None if there are none."""
    norms = []

    def rounded(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not fnmatch.fnmatchcase(name, "*norm*"):
            return leaf
        norms.append(name)
        scale = jnp.max(jnp.abs(leaf)) / (2.0 ** (bits - 1) - 1)
        return jnp.where(scale > 0, jnp.round(leaf / jnp.where(scale > 0, scale, 1)) * scale, leaf)

    params = jax.tree_util.tree_map_with_path(rounded, params)
    return params if norms else None


def rows_of(arrays: dict[str, np.ndarray], part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row a group of one width, the most sensitive first; what is several of them last."""
    several = (ALL, ALL_STORED)
    total = sum(float(np.median(e)) ** 2 for g, e in arrays.items() if g not in several)
    macs = sum(part["macs"].values())
    rows = []
    for group, errors in arrays.items():
        low, median, high = (float(q) for q in np.quantile(errors, (0.1, 0.5, 0.9)))
        share, size = median**2 / total, part["macs"].get(group, 0) / macs
        rows.append({
            "bits": part["bits"], "group": group, "error": [low, median, high], "share": share,
            "macs": size, "per_mac": share / size if size else None,
        })  # fmt: skip
    return sorted(rows, key=lambda r: (r["group"] in several, -r["error"][1]))


def run(config: Config, **options):
    """Return arrays `W8A8/<group>` [samples], RMS errors, and rows; touches no file.

    Options as `command.parts`.
    """
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    study = subject.prepare(config.checkpoint, steps_of, ("*",), config.seed,
                            values=config.values)  # fmt: skip
    stored = tuple(site.name for site in study.sites if site.is_value)
    study = dataclasses.replace(study, globs=("*", *stored))
    steps = steps_of(study.denoiser.schedule)
    x_T = subject.noise(study.denoiser, config.num_samples, config.seed)
    groups: dict[str, set[str]] = {}
    macs: dict[str, int] = {}
    for site in study.sites:
        group = group_of(site)
        groups.setdefault(group, set()).add(site.name)
        macs[group] = macs.get(group, 0) + site.macs
    groups[ALL] = {site.name for site in study.sites} - set(stored)
    groups |= {ALL_STORED: set(stored)} if stored else {}

    @compiled
    def sample(q, on):
        call = gated_call(q)
        return diffusion.sample(lambda x, t, _, state: call(x, t, on, state), x_T, steps).x_0

    def sample_rounding(q, names):
        return sample(q, {s.name: jnp.asarray(s.name in names) for s in study.sites})

    def measure(width: str):
        bits = int(width.partition("A")[2])
        q = study.quantized(bits, bits)
        samples = {group: sample_rounding(q, names) for group, names in groups.items()}
        exact, norms = sample_rounding(q, ()), round_norms(q.params, bits)
        if norms is not None:
            samples[NORMS] = sample_rounding(q.with_params(norms), ())
        arrays = {group: np.asarray(prediction.root_mean_square(x - exact))
                  for group, x in samples.items()}  # fmt: skip
        return arrays, {"bits": bits, "macs": macs}

    mark = results.fingerprint(dataclasses.asdict(config) | {"bits": None}, study.mark())
    widths = [f"W{b}A{b}" for b in config.bits]
    done = command.parts(widths, measure, mark, **options)
    return command.by_part(done), [row for part in done.values() for row in rows_of(*part)]


EXPERIMENT = command.experiment(Config, run, plots=plots)
