"""Which parts of a network are sensitive: each kind of operation quantized alone.

    python -m experiments.group_sensitivity                    the shipped UNet
    python -m experiments.group_sensitivity --checkpoint fashion_dit

Attention, convolutions by resolution, MLPs, embeddings, the ends: weights and activations of one
group at a time are rounded, all else is full precision, and the samples are compared with the
full-precision ones of the same noise. Normalization has no products; there the parameters (scale
and shift) are rounded, with one range per array, its statistics are not. One row a group and
width:

  error       RMS error of a sample, median over samples, and 10 to 90 %
  share       of the sum over groups of the squared median
  MACs        share of the network's multiplications
  per MAC     share over MACs: above one, more sensitive than its size
"""

import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.group_sensitivity import plots
from experiments.harness import old_command as command
from experiments.harness import store, subject
from qdiffjax import compiling, diffusion
from qdiffjax.analysis.errors import prediction
from qdiffjax.precision import gated_call
from qdiffjax.precision.recipe import check_bits

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


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    bits: tuple[int, ...] = (8, 6, 4)
    num_steps: int = 20
    num_samples: int = 32
    seed: int = 0


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "bits": "of weights and activations",
    "num_steps": "steps of DDIM",
    "num_samples": "samples",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    for bits in config.bits:
        check_bits(bits)
    if config.num_steps < 1 or config.num_samples < 2:
        raise ValueError(f"got {config.num_steps} steps and {config.num_samples} samples, expected "
                         "at least 1 and 2.")  # fmt: skip


def group_of(site: str) -> str:
    """Return the group of a site by its name."""
    return next(group for group, globs in GROUPS.items()
                if any(fnmatch.fnmatchcase(site, glob) for glob in globs))  # fmt: skip


class Study:
    """One denoiser, compiled once for all groups and widths."""

    def __init__(self, config: Config):
        self.config = config
        self.subject = subject.prepare(
            config.checkpoint, lambda s: diffusion.ddim(s, config.num_steps), ("*",), config.seed
        )
        denoiser = self.subject.denoiser
        self.steps = diffusion.ddim(denoiser.schedule, config.num_steps)
        self.x_T = subject.noise(denoiser, config.num_samples, config.seed)
        self.sample = compiling.compiled(self._sample)
        self.groups: dict[str, list] = {}
        for site in self.subject.sites:
            self.groups.setdefault(group_of(site.name), []).append(site)

    def mark(self) -> str:
        """Fingerprint of everything but the list of widths."""
        config = dataclasses.asdict(self.config) | {"bits": None}
        return store.fingerprint(config, self.subject.mark())

    def _sample(self, q, on):
        call = gated_call(q)
        run = diffusion.sample(lambda x, t, _, state: call(x, t, on, state), self.x_T, self.steps)
        return run.x_0

    def measure(self, width: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, row) of one width: errors of every group [samples]."""
        bits = int(width.partition("A")[2])
        q = self.subject.quantized(bits, bits)
        names = [site.name for site in self.subject.sites]

        def switched(chosen):
            return {name: jnp.asarray(name in chosen) for name in names}

        exact = self.sample(q, switched(()))
        chosen = {group: {s.name for s in sites} for group, sites in self.groups.items()}
        arrays = {group: self._errors(q, switched(on), exact)
                  for group, on in (chosen | {"all": set(names)}).items()}  # fmt: skip
        norms = round_norms(q.params, bits)
        if norms is not None:
            q = dataclasses.replace(q, params=norms)
            arrays[NORMS] = self._errors(q, switched(()), exact)
        return arrays, {"bits": bits, "macs": {g: sum(s.macs for s in sites)
                                               for g, sites in self.groups.items()}}  # fmt: skip

    def _errors(self, q, on, exact) -> np.ndarray:
        return np.asarray(prediction.root_mean_square(self.sample(q, on) - exact))


def round_norms(params, bits: int):
    """Return params with the arrays of normalization layers rounded, None if there are none."""
    found = []

    def rounded(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not fnmatch.fnmatchcase(name, "*norm*"):
            return leaf
        found.append(name)
        scale = jnp.max(jnp.abs(leaf)) / (2.0 ** (bits - 1) - 1)
        return jnp.where(scale > 0, jnp.round(leaf / jnp.where(scale > 0, scale, 1)) * scale, leaf)

    params = jax.tree_util.tree_map_with_path(rounded, params)
    return params if found else None


def rows_of(arrays: dict[str, np.ndarray], part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row a group of one width, the most sensitive first; `all` last."""
    total = sum(float(np.median(e)) ** 2 for g, e in arrays.items() if g != "all")
    macs = sum(part["macs"].values())
    rows = []
    for group, errors in arrays.items():
        low, median, high = (float(q) for q in np.quantile(errors, (0.1, 0.5, 0.9)))
        share, size = median**2 / total, part["macs"].get(group, 0) / macs
        rows.append({
            "bits": part["bits"], "group": group, "error": [low, median, high], "share": share,
            "macs": size, "per_mac": share / size if size else None,
        })  # fmt: skip
    return sorted(rows, key=lambda r: (r["group"] == "all", -r["error"][1]))


def run(config: Config, **options):
    """Return arrays `W8A8/<group>` [samples], RMS errors, and rows; touches no file.

    Options as `command.parts`.
    """
    check(config)
    study = Study(config)
    widths = [f"W{b}A{b}" for b in config.bits]
    found = command.parts(widths, study.measure, study.mark(), **options)
    return command.by_part(found), [row for part in found.values() for row in rows_of(*part)]


EXPERIMENT = command.Experiment(
    "group_sensitivity", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and the figure."""
    return command.main(EXPERIMENT, argv)
