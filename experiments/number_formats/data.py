"""What `number_formats` quantizes: samples, and the weights and activations of a network."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness import subject
from qdiffjax import compiling, diffusion, precision
from qdiffjax.networks import denoisers
from qdiffjax.quant import noise
from qdiffjax.sites import list_sites, rules, transform

ROW = 64  # numbers; divides into every block
LAWS: dict[str, Any] = {"gaussian": noise.Gaussian(), "laplace": noise.Laplace()}


class Tensor(NamedTuple):
    """Numbers in rows [r, ROW], NaN where a channel has ended; a channel shares a scale."""

    source: str
    name: str
    rows: np.ndarray
    channel: np.ndarray


def tensors(config) -> Iterator[Tensor]:
    """Yield everything that is quantized."""
    denoiser = denoisers.load(config.checkpoint)
    steps = diffusion.ddim(denoiser.schedule, config.num_steps)  # refuses more than there are
    rng = np.random.default_rng(config.seed)
    for name, law in LAWS.items():
        # Stratified, one in each of equally likely intervals: few tail samples decide otherwise.
        p = rng.permutation(config.num_random) + rng.uniform(size=config.num_random)
        yield in_rows(name, name, law.quantile(p / config.num_random)[None])
    eps_fn, params = denoiser.eps_fn, denoiser.params
    x_T = subject.noise(denoiser, config.num_samples, config.seed)
    for name, w in precision.weight_operands(eps_fn, params, x_T[:1], jnp.zeros(())).items():
        yield in_rows("weights", name, np.moveaxis(np.asarray(w), -1, 0).reshape(w.shape[-1], -1))
    run = compiling.compiled(lambda p, x: diffusion.sample(diffusion.bind(eps_fn, p), x, steps).xs)
    xs = run(params, x_T)
    sites = {s.name: s for s in list_sites(eps_fn, params, x_T, jnp.zeros(()))}
    read = compiling.compiled(transform(eps_fn, rules.collect_operands))
    for step in config.steps:
        for name, operands in read(params, xs[step], steps.t[step])[1].items():
            for i in sites[name].activations:
                x = np.asarray(operands[i]).reshape(1, -1)
                yield in_rows("activations", f"{name}:{i}@{step}", x, config.num_elements)


def in_rows(source: str, name: str, x, num_elements: int | None = None) -> Tensor:
    """Cut channels [c, n] into rows; of too many, take evenly spaced ones."""
    filler = ((0, 0), (0, -x.shape[1] % ROW))
    x = np.pad(np.asarray(x, np.float32), filler, constant_values=np.nan)
    rows, channel = x.reshape(-1, ROW), np.repeat(np.arange(len(x)), x.shape[1] // ROW)
    if num_elements and rows.size > num_elements:
        keep = np.linspace(0, len(rows) - 1, num_elements // ROW).astype(int)
        rows, channel = rows[keep], channel[keep]
    return Tensor(source, name, rows, channel)


class Pool(NamedTuple):
    """All tensors as one array of R rows, so that a format compiles once.

    The filler is zero in `x` [R, ROW] and not `is_real`: blocks may end in it, but it is not
    counted. `tensor` and `channel` [R] say whose each row is.
    """

    tensors: list[Tensor]
    x: np.ndarray
    is_real: np.ndarray
    tensor: np.ndarray
    channel: np.ndarray

    @property
    def signal(self) -> np.ndarray:
        """Mean square of each tensor."""
        return self.mean(np.sum(self.x.astype(np.float64) ** 2, 1))

    def mean(self, sums) -> np.ndarray:
        """Return the mean over each tensor, from sums over rows [R]."""
        return np.bincount(self.tensor, sums) / self.sizes()

    def sizes(self) -> np.ndarray:
        """Return how many numbers each tensor has."""
        return np.bincount(self.tensor, self.is_real.sum(1))

    def over_channels(self, rows, reduce) -> np.ndarray:
        """Reduce [R] over the rows of each channel, and give it back to them [R]."""
        by_channel = np.zeros(self.channel.max() + 1)
        reduce.at(by_channel, self.channel, rows)
        return by_channel[self.channel]


def pooled(tensors: list[Tensor]) -> Pool:
    """Stack the rows of all tensors, whose channels are counted through."""
    rows = np.concatenate([t.rows for t in tensors])
    starts = np.cumsum([0, *(t.channel.max() + 1 for t in tensors)])
    channel = [t.channel + start for t, start in zip(tensors, starts, strict=False)]
    tensor = np.repeat(np.arange(len(tensors)), [len(t.rows) for t in tensors])
    return Pool(tensors, np.nan_to_num(rows), ~np.isnan(rows), tensor, np.concatenate(channel))
