"""What the front door measures: runs on drawn noise, compiled once, in chunks that fit.

Each function takes a quantized denoiser and a sampler, and a `Run` of `couple` where it speaks of
the same samples: measured, predicted and bounded numbers then belong together. Recipes that differ
in widths share what was compiled.
"""

import functools
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import comparisons
from qdiffjax._checks import check_callable, check_count, check_number, check_type, require
from qdiffjax._typing import Array, Key
from qdiffjax.analysis.errors import ledger
from qdiffjax.analysis.errors.ledger import Functional, Ledger, squared_error_share
from qdiffjax.analysis.errors.runs import norms
from qdiffjax.analysis.gains import step_gains
from qdiffjax.chunks import MEMORY_SHARE, chunks_of, device_memory, elements_of, fitting
from qdiffjax.comparisons import Bounded, Predicted, Propagated, Run
from qdiffjax.compiling import compiled
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import Steps
from qdiffjax.diffusion import sample as run_sampler
from qdiffjax.precision import Quantized, final_samples, full_call
from qdiffjax.precision.refusals import check_quantized, check_run, check_sampling

NUM_SAMPLES = 64


def sample(
    model: Denoiser | Quantized,
    steps: Steps,
    key: Key,
    num_samples: int = 16,
    *,
    x_T=None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Array:
    """Draw samples x_0 [num_samples, *shape] of a denoiser, in full or in low precision.

    The same key is the same noise and the same conditions, whatever the precision.

    Args:
      model: the denoiser, or one that `quantize` or `lower` returned.
      steps: the sampler, such as `ddim(denoiser.schedule, 50)`.
      key: of the initial noise, of conditions that are drawn, and of the sampler's noise.
      num_samples: how many.
      x_T: initial noise [num_samples, *shape] instead of what the key draws.
      batch_size: samples at a time; None takes what fits in a fifth of the memory. Each chunk of a
        sampler that adds noise has noise of its own, so that other chunks are other samples.
      progress: show a progress bar.

    Example:
      >>> import jax, qdiffjax as qd
      >>> denoiser = qd.load("fashion_dit").conditioned([3, 7])
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> qd.sample(denoiser, steps, jax.random.key(0), 2).shape
      (2, 28, 28, 1)
    """
    check_type("model", model, (Denoiser, Quantized), remedy="such as load('fashion_unet')")
    q = model if isinstance(model, Quantized) else Quantized(model, {})
    in_full = not isinstance(model, Quantized)
    parts = []
    for start in starts(q, steps, key, num_samples, x_T, batch_size, progress):
        parts.append(program(_final, in_full)(*start, steps))
    return jnp.concatenate(parts)


def _final(in_full: bool, q, x_T, key, steps):
    return final_samples(q, x_T, steps, key, in_full=in_full)


def couple(
    q: Quantized,
    steps: Steps,
    key: Key,
    num_samples: int = NUM_SAMPLES,
    *,
    x_T=None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Run:
    """Run the sampler in full and in low precision on the same noise and conditions.

    Measured: `run.errors` is a difference on one noise path. Costs two sampling runs.

    Args:
      q: a denoiser that `quantize` or `lower` returned.
      steps: the sampler.
      key: as in `sample`.
      num_samples: how many; of a sampler that adds noise at most what `batch_size` holds.
      x_T, batch_size, progress: as in `sample`.

    Raises:
      ValueError: the full-precision samples are not finite.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> run.xs.shape, run.xs_hat.shape  # both runs: [steps + 1, samples, *shape]
      ((5, 8, 2), (5, 8, 2))
    """
    check_quantized(q)
    parts = []
    for start in starts(q, steps, key, num_samples, x_T, batch_size, progress):
        run = program(_coupled)(*start, steps)
        parts.append(run._replace(cond=start[0].cond, key=start[2]))
    is_one = len(parts) == 1
    require(is_one or parts[0].key is None, "couple", got=f"{num_samples} samples in chunks",
            expected="one chunk for a sampler that adds noise",
            remedy="take fewer samples or a larger batch_size")  # fmt: skip
    run = parts[0] if is_one else joined(parts)
    require(bool(jnp.isfinite(run.xs).all()), "couple", got="full-precision samples with NaN",
            expected="finite samples", remedy="check the parameters and the sampler")  # fmt: skip
    return run


def _coupled(q, x_T, key, steps) -> Run:
    xs = run_sampler(full_call(q), x_T, steps, key=key).states
    return comparisons.measured(q, x_T, xs, steps, key=key)


def joined(parts: list[Run]) -> Run:
    """Return runs of different samples as one."""
    join = lambda *arrays: jnp.concatenate(arrays, axis=1)  # noqa: E731
    xs, xs_hat, eps_hat = (join(*(part[i] for part in parts)) for i in range(3))
    cond = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(p.cond for p in parts))
    return Run(xs, xs_hat, eps_hat, cond, parts[0].key)


def predict(
    q: Quantized,
    steps: Steps,
    run: Run,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Predicted:
    """Predict the error from the full-precision run alone, for the samples of a run.

    Only `run.xs` is read; see `analysis.errors.prediction` for what is assumed. A sampler's noise
    is common to both runs and drops out. Costs about eight sampling runs.

    Args:
      q: the quantized denoiser.
      steps: the sampler.
      run: what `couple` returned.
      batch_size, progress: as in `sample`.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> predicted = qd.predict(q, steps, run)[0]
      >>> ratio = jnp.linalg.norm(predicted[-1]) / jnp.linalg.norm(run.errors[-1])
      >>> 0.5 < float(ratio) < 2
      True
    """
    check_run(q, steps, run, batch_size=batch_size)
    q, num = q.given(run.cond), run.xs.shape[1]
    chunks = chunks_of(num, batch_size or fitting(q, steps))
    parts = [program(comparisons.predicted)(q.at(chunk), run.xs[:, chunk], steps)
             for chunk in _bar(chunks, progress)]  # fmt: skip
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def propagate(q: Quantized, steps: Steps, run: Run) -> Propagated:
    """Take a measured run apart: local errors, their first-order propagation, what that misses.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> parts = qd.propagate(q, steps, run)
      >>> bool(jnp.allclose(parts.first_order, run.errors, atol=1e-5))  # exact for a linear network
      True
    """
    check_run(q, steps, run)
    return program(comparisons.propagated)(q.given(run.cond), run, steps)


def attribute(
    q: Quantized,
    steps: Steps,
    run: Run,
    *,
    num_samples: int | None = 32,
    functional: Functional = squared_error_share,
    tolerance: float = 1e-2,
    max_nodes: int = 7,
    batch_size: int | None = None,
    progress: bool = False,
) -> Ledger:
    """Attribute the change of the final samples to every (site, step).

    Contributions sum to the change up to the defect, which is printed with the ledger. Each
    quadrature node costs the operations of about 5 sampling runs of these samples (7 if the
    recorded errors do not fit in memory). One is tried, then 3, 7 and 15; earlier ones are kept.

    Args:
      q: the quantized denoiser.
      steps: the sampler.
      run: what `couple` returned; its first samples are analysed.
      num_samples: how many of them; None for all.
      functional: of one final sample; the default splits the mean squared error.
      tolerance: median defect that is good enough; nodes are added until then.
      max_nodes: most nodes, 1 to 15.
      batch_size: samples at a time; None takes what fits.
      progress: show a progress bar.

    Warns:
      UserWarning: the defect is large, or the samples analysed one at a time end elsewhere than in
        the run, by more than their quantization error: what a rule does to one hangs on others.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> ledger = qd.attribute(q, steps, run)
      >>> total = sum(c.sum() for c in ledger.contributions.values())
      >>> bool(jnp.isclose(total, ledger.change.sum(), rtol=1e-2))
      True
    """
    check_run(q, steps, run, num_samples=num_samples, batch_size=batch_size)
    check_number("tolerance", tolerance, least=0)
    check_count("max_nodes", max_nodes, most=15)
    check_callable("functional", functional, "(x, x_0, x_hat_0) -> a number")
    run = run if num_samples is None else run.first(num_samples)
    q, num = q.given(run.cond), run.xs.shape[1]
    elements = elements_of(q)
    # A node with all it keeps for the adjoint takes at most six times a sampling run's memory.
    size = batch_size or max(1, fitting(q, steps, elements) // 6)
    x_T, x_0 = (steps.coeffs.current(run.xs[i]) for i in (0, -1))
    chunks = chunks_of(num, size if run.key is None else num)
    kept = 4 * len(steps.t) * elements
    keep_errors = kept * (chunks[0].stop - chunks[0].start) <= MEMORY_SHARE * device_memory()
    entries_of = program(_attributed, functional, keep_errors)

    def attribute_with(nodes, weights) -> Ledger:  # all chunks, so that all have as many nodes
        parts = []
        bar.total += len(chunks)
        for chunk in chunks:
            parts.append(entries_of(q.at(chunk), x_T[chunk], x_0[chunk], run.key, steps, nodes,
                                    weights))  # fmt: skip
            bar.update()
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    with _bar([], progress) as bar:  # grows with the nodes that it takes
        whole, _ = comparisons.attributed(attribute_with, tolerance=tolerance, max_nodes=max_nodes)
    ledger.warn_of_defect(whole)
    _warn_of_another_run(whole, steps.coeffs.current(run.xs_hat[-1]))
    return whole


def _warn_of_another_run(whole: Ledger, x_hat_0) -> None:
    """Warn if the quantized samples of a ledger are not those of the run it explains.

    Last digits that flip a rounding move a sample by part of its quantization error.
    """
    compared = jnp.stack([whole.x_hat_0 - x_hat_0, x_hat_0 - whole.x_0, x_hat_0])
    apart, error, size = np.asarray(norms(compared))
    share = float(np.median(apart / np.maximum(error, 1e-30)))
    if share > 1 and np.median(error) > 1e-5 * np.median(size):
        warnings.warn(
            f"ledger: got quantized samples that differ from the run's by {share:.2g} times their "
            "error, expected the same samples: one at a time they are rounded otherwise than "
            "together (a range over the batch, a network that mixes samples). The ledger is of "
            "samples one at a time.", stacklevel=3,
        )  # fmt: skip


def _attributed(functional, keep_errors, q, x_T, x_0, key, steps, nodes, weights):
    entries = ledger.attribution(q, x_T, steps, functional, quadrature=(nodes, weights), x_0=x_0,
                                 key=key, keep_errors=keep_errors)  # fmt: skip
    return entries._replace(xs_hat=None)


def bound(
    q: Quantized,
    steps: Steps,
    run: Run,
    *,
    num_samples: int | None = 8,
    num_iterations: int = 4,
) -> Bounded:
    """Bound the error of a measured run at every step, sample by sample.

    Both bounds hold along the run if the gains, Krylov estimates from below at both ends of each
    segment, have converged: they are checked against what was measured.

    Args:
      q: the quantized denoiser.
      steps: the sampler.
      run: what `couple` returned; its first samples are bounded.
      num_samples: how many of them; None for all.
      num_iterations: Krylov dimension of each gain.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> bounded = qd.bound(q, steps, run)
      >>> bounded.holds()
      (True, True)
    """
    check_run(q, steps, run, num_samples=num_samples)
    check_count("num_iterations", num_iterations, least=2)
    run = run if num_samples is None else run.first(num_samples)
    parts, q = propagate(q, steps, run), q.given(run.cond)
    gains = program(_gains, num_iterations)
    ends = [gains(q, xs, steps) for xs in (run.xs, run.xs_hat)]
    roundings = comparisons.network_roundings(q.denoiser.sites()) if q.denoiser.shape else 0.0
    return program(_bounded)(run, parts, jnp.maximum(*ends), steps, roundings)


def _bounded(run, parts, gains, steps, num_roundings):
    return comparisons.bounded(run, parts, gains, steps, num_roundings=num_roundings)


def _gains(num_iterations, q, xs, steps):
    key = jax.random.key(0)  # of the first guess of singular vectors; no result hangs on it
    return step_gains(full_call(q), xs, steps, key=key, num_iterations=num_iterations).norms


@functools.lru_cache(maxsize=64)
def _compiled(fn: Callable, *static):
    return compiled(functools.partial(fn, *static))


def program(fn: Callable, *static) -> Callable:
    """Return fn(*static, *arrays), compiled once for all arrays of the same shapes.

    Full precision is float32 also where matrix units would rather take tf32 or bfloat16.
    """

    def run(*arrays):
        with jax.default_matmul_precision("highest"):
            return _compiled(fn, *static)(*arrays)

    return run


def starts(q, steps, key, num_samples, x_T, batch_size, progress) -> Iterator[tuple]:
    """Yield (q with its conditions, x_T, noise key) of each chunk."""
    check_sampling(q.denoiser, steps, key, num_samples, x_T=x_T, batch_size=batch_size)
    key_start, key_noise = jax.random.split(key)
    if x_T is None:
        x_T, cond = q.denoiser.draw(key_start, num_samples, steps.t[0])
    else:
        x_T, cond = jnp.asarray(x_T), q.denoiser.draw_cond(key_start, len(x_T))
    q, noise = q.given(cond), steps.noise_key(key_noise)
    chunks = chunks_of(len(x_T), batch_size or fitting(q, steps))
    for i, chunk in enumerate(_bar(chunks, progress)):
        own = noise if noise is None or not i else jax.random.fold_in(noise, i)
        yield q.at(chunk), x_T[chunk], own


def _bar(chunks: list[slice], progress: bool):
    """Return the chunks behind a progress bar."""
    from tqdm import tqdm

    return tqdm(chunks, disable=not progress, unit="chunk")
