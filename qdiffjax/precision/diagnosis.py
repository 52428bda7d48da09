"""One early look at a denoiser: what would falsify an analysis, or silently be left out of it."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion
from qdiffjax._checks import require
from qdiffjax.compiling import hurried_jit
from qdiffjax.denoiser import Denoiser, Draw
from qdiffjax.precision.refusals import arguments, check_cond, check_result
from qdiffjax.sites import Sites, list_sites

NUM_SAMPLES = 4  # that are looked at
HIDDEN_SHARE = 0.01  # of the weights: less may be filters and time features
TOLERANCE = 1e-3  # of eps of a sample alone against eps of the same sample in a batch


class DiagnosisWarning(UserWarning):
    """Something about a network that an analysis cannot mend, but the user should know."""


class Finding(NamedTuple):
    """kind: one word for what was found; text: what it means and what to do."""

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is odd about a denoiser; prints as lines.

    findings: what to know before trusting an analysis, empty is good; sites: at a batch of one.
    """

    findings: tuple[Finding, ...]
    sites: Sites

    def __repr__(self) -> str:
        lines = [f"{finding.kind}: {finding.text}" for finding in self.findings]
        return "\n".join(lines or [f"{len(self.sites)} sites, nothing odd"])

    def warn(self, stacklevel: int = 2) -> None:
        """Give each finding as a `DiagnosisWarning` at the line of the caller."""
        for finding in self.findings:
            text = f"{finding.kind}: {finding.text}"
            warnings.warn(text, DiagnosisWarning, stacklevel=stacklevel + 1)


def diagnose(
    denoiser: Denoiser, steps: diffusion.Steps, key=None, *, draw: Draw | None = None
) -> Diagnosis:
    """Look at a denoiser at the first states of a sampler, before any long work.

    Refuses a network that cannot be sampled, and finds: products that no rule reaches, weights
    that are constants or carry the batch axis, numbers that are not real, samples that depend on
    their batch. Costs a few traces and one compilation of a few calls with at most four samples.
    Inside of jit, where numbers are not known, only what shapes tell is found.

    Args:
      denoiser: any network, see `Denoiser`.
      steps: the sampler.
      key: of the samples.
      draw: the samples themselves, in place of a key.

    Raises:
      ValueError: a network that fails, or returns no array of the shape of x; conditions of
        another number of samples; eps that is not finite at the first step.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> from qdiffjax import precision
      >>> hidden = jnp.ones((2, 2))
      >>> denoiser = qd.Denoiser(lambda params, x, t: x @ hidden, {}, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 10)
      >>> diagnosis = precision.diagnose(denoiser, steps, jax.random.key(0))
      >>> diagnosis.findings[0].text[:53]
      "100.0 % of the weights are constants of the network's"
    """
    if draw is None:
        require(key is not None, "diagnose", got="neither key nor draw", expected="one of them",
                remedy="pass jax.random.key(seed)")  # fmt: skip
        draw = denoiser.draw(key, NUM_SAMPLES, steps.t[0])
    check_cond(draw)
    few = jax.tree.map(lambda leaf: leaf[:NUM_SAMPLES], draw)
    t = steps.times(draw.x_T)
    check_result(denoiser, draw, few, t[0])
    one = jax.tree.map(lambda leaf: leaf[:1], few)
    sites, batched = (list_sites(*arguments(denoiser, d, t[0])) for d in (one, few))
    findings = [_opaque(sites), _hidden_weights(sites, denoiser.params), _not_real(sites),
                _batch_in_weights(sites, batched)]  # fmt: skip
    if not any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((denoiser, draw, steps))
    ):
        calls = _calls(denoiser, steps, few)
        _check_finite(calls, t)
        findings += [_mixed_samples(calls, sites), _not_finite(calls, t)]
    return Diagnosis(tuple(finding for finding in findings if finding), sites)


class _Calls(NamedTuple):
    """eps of the samples in one batch, and alone, at two states and times, in NumPy [2, num, ...].

    The first state is x_T, the second as much noise as halfway through the sampler.
    """

    together: Any
    alone: Any


def _calls(denoiser: Denoiser, steps: diffusion.Steps, draw: Draw) -> _Calls:
    times = steps.times(draw.x_T)
    middle = len(times) // 2
    scale = [1.0, _noise(denoiser, steps.t[middle]) / _noise(denoiser, steps.t[0])]
    states = jnp.asarray(scale, draw.x_T.dtype), times[jnp.array([0, middle])]
    bare = dataclasses.replace(denoiser, cond=None)
    return jax.tree.map(np.asarray, _both()(bare, draw, *states))


def _noise(denoiser: Denoiser, t) -> float:
    """Standard deviation of x_t for data of unit variance."""
    if denoiser.schedule is None:
        return 1.0
    level = denoiser.schedule.exact(np.asarray(t, np.float64))
    return math.hypot(level.alpha, level.sigma)


@functools.cache
def _both() -> Callable[..., _Calls]:
    return hurried_jit(_together_and_alone)


def _together_and_alone(denoiser: Denoiser, draw: Draw, scale, times) -> _Calls:
    def call(x, t, cond):
        fn, *args = arguments(denoiser, Draw(x, cond), t)
        return fn(*args)

    def at(state):
        factor, t = state
        x = draw.x_T * factor
        alone = jax.lax.map(
            lambda sample: call(sample[0][None], t, jax.tree.map(lambda c: c[None], sample[1]))[0],
            (x, draw.cond),
        )
        return _Calls(call(x, t, draw.cond), alone)

    return jax.lax.map(at, (scale, times))


def _check_finite(calls: _Calls, t) -> None:
    bad = _bad_samples(calls)[0]
    require(not bad, "denoiser", got=f"eps that is not finite for {bad} of "
            f"{calls.together.shape[1]} samples of noise at t = {float(t[0]):g}",
            expected="finite numbers", remedy="check the parameters, and that the schedule and its "
            "times are those the network was trained with")  # fmt: skip


def _bad_samples(calls: _Calls) -> list[int]:
    axes = tuple(range(2, calls.together.ndim))
    return list((~np.isfinite(calls.together).all(axes)).sum(1))


# ------------------------------------------------------------------ what is found


def _opaque(sites: Sites) -> Finding | None:
    if not sites.opaque:
        return None
    return Finding("opaque products", f"{'; '.join(sites.opaque)}. They stay in full precision "
                   "and are in no ledger or bound; write them with products that JAX can "
                   "see, as in lax.scan, for them to count.")  # fmt: skip


def _hidden_weights(sites: Sites, params) -> Finding | None:
    hidden = {s.name: s.parameters for s in sites if s.is_constant}
    total = sum(hidden.values())
    share = total / max(1, total + sum(map(jnp.size, jax.tree.leaves(params))))
    if share < HIDDEN_SHARE:
        return None
    return Finding("hidden weights", f"{100 * share:.1f} % of the weights are constants of the "
                   f"network's closure ({listing(hidden)}). Recipes leave them out: pass them in "
                   "params if they were trained.")  # fmt: skip


def _not_real(sites: Sites) -> Finding | None:
    odd = {s.name: s.dtype for s in sites if not s.is_real}
    if not odd:
        return None
    types = ", ".join(sorted(set(odd.values())))
    return Finding("numbers that are not real", f"{listing(odd)} of {types}. They cannot be "
                   "rounded, and recipes leave them out.")  # fmt: skip


def _batch_in_weights(sites: Sites, batched: Sites) -> Finding | None:
    if [s.name for s in sites] != [s.name for s in batched]:
        return Finding("sites by batch size", f"{len(sites)} for one sample, {len(batched)} for "
                       "several. What holds for single samples does not for a batch.")  # fmt: skip
    odd = [a.name for a, b in zip(sites, batched, strict=True)
           if a.weight is not None and a.shapes[a.weight] != b.shapes[a.weight]]  # fmt: skip
    if not odd:
        return None
    return Finding("weights with the batch axis", f"{listing(odd)}. They are parameters spread "
                   "over the samples, and other batch sizes do not fit their codes: leave them "
                   "out of the recipe, or multiply before spreading.")  # fmt: skip


def _mixed_samples(calls: _Calls, sites: Sites) -> Finding | None:
    together, alone = (
        np.nan_to_num(_flat(eps), posinf=0.0, neginf=0.0) for eps in calls
    )  # others are found elsewhere
    norms = np.linalg.norm(together, axis=-1)
    distance = np.linalg.norm(alone - together, axis=-1) / np.maximum(norms, 1e-30)
    worst = float(np.max(distance))
    widths = [float(jnp.finfo(s.dtype).eps) for s in sites if s.is_real]
    if worst <= max(TOLERANCE, 8 * max(widths, default=0.0)):
        return None
    return Finding("samples that depend on their batch", f"eps of a sample alone differs by "
                   f"{worst:.2g} (relative) from eps of the same sample among "
                   f"{together.shape[1]}. Ledgers analyse samples one at a time, so theirs would "
                   "be another run: pass what belongs to a sample, such as labels, as "
                   "Denoiser(..., cond=), and take statistics over the batch out of the network "
                   "(stored averages of a batch norm).")  # fmt: skip


def _not_finite(calls: _Calls, t) -> Finding | None:
    bad = _bad_samples(calls)[1]
    if not bad:
        return None
    return Finding("eps that is not finite", f"{bad} of {calls.together.shape[1]} samples at "
                   f"t = {float(t[len(t) // 2]):g}, at noise alone.")  # fmt: skip


def _flat(eps):
    return np.float64(eps).reshape(*eps.shape[:2], -1)


def listing(names: Iterable[str]) -> str:
    """Return the first five names in words."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
