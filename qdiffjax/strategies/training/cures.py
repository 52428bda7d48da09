"""The cure that trains a quantized denoiser while it rounds."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from qdiffjax import precision
from qdiffjax._checks import (
    POSITIVE,
    SHARE,
    check_count,
    check_names,
    check_type,
    checked,
    optional,
    require,
)
from qdiffjax.strategies.drafts import TRAIN, Cure, Draft
from qdiffjax.strategies.training.loop import Training, evaluations, keys_of, learned
from qdiffjax.strategies.training.objectives import Objective, distillation
from qdiffjax.strategies.training.values import (
    ACTIVATIONS,
    LEARNED,
    LEVELS,
    LSQ,
    PACT,
    SCALES,
    WEIGHTS,
    Choice,
    starting_point,
)

DEFAULT = (WEIGHTS, SCALES, ACTIVATIONS, LEVELS)


@checked(num_steps=check_count, rank=optional(check_count), learning_rate=POSITIVE, decay=SHARE)
def qat(
    num_steps: int = 500,
    *,
    objective: Objective | None = None,
    sites: Sequence[str] | None = None,
    learn: Sequence[str] = DEFAULT,
    rank: int | None = None,
    clip: str = LSQ,
    learning_rate: float = 0.03,
    decay: float = 0.98,
    directory: str | Path | None = None,
    save_every: int = 500,
    progress: bool = True,
) -> Cure:
    """Return the cure that trains weights and grids of the quantized denoiser, straight-through.

    It goes on from what the cures before it decided: from the default rounding, from GPTQ's, in a
    rotated basis, beside a low-rank part. Weights stay on their grid; biases and gains of norms,
    which no recipe rounds, stay as they are. What is not better than before, on noise that training
    has not seen, is not taken: by the error of samples, or by the objective where that needs data.

        scale: LSQ (Esser et al. 2020);  activations: LSQ+ (Bhalgat et al. 2020) or PACT (Choi et
        al. 2018);  rank: EfficientDM (He et al. 2024), Q(w + A B), merged before it is rounded

    Args:
      num_steps: steps of Adam.
      objective: `distillation()` and others of `strategies`; None is that.
      sites: globs of sites that are trained; others stay as post-training cures left them, which is
        the hybrid of both. None trains all that are rounded.
      learn: some of "weights"; "scales" of weights, with their zero points; "activations", static
        grids, which `static_clips()` makes; "levels" of codebooks.
      rank: of the change of a weight; None changes all numbers.
      clip: "lsq" or "pact", of activations whose grid begins at zero.
      learning_rate: of Adam, in steps of a grid and shares of a scale; falls to zero by the end.
      decay: of the average of the values, which is the result.
      directory: where the training is kept and goes on after an interruption; None for nowhere.
      save_every: steps between what is kept.
      progress: show a progress bar.

    Raises:
      ValueError: nothing to learn; words that are none; what does not fit the recipe.
      FloatingPointError: the loss is not finite.

    Warns (when applied):
      DiagnosisWarning: what was learned is not better, and not taken.
    """
    check_names("clip", (clip,), (LSQ, PACT))
    require(not isinstance(learn, str), "learn", got=repr(learn), expected="a tuple of words",
            remedy=f"({learn!r},)", error=TypeError)  # fmt: skip
    check_names("learn", learn, LEARNED)
    objective = distillation() if objective is None else objective
    check_type("objective", objective, Objective, remedy="such as strategies.distillation()")
    choice = Choice({}, tuple(learn), rank, clip)

    def apply(draft: Draft) -> Draft:
        start, own = starting_point(draft, sites, choice)
        task = objective.task(draft)
        how = Training(num_steps, objective.batch_size, learning_rate, decay, directory,
                       save_every, progress)  # fmt: skip
        first = own.first(start, keys_of(draft)[0])
        about = {"objective": objective.name, "learn": list(learn), "clip": clip}
        found = learned(draft, task, how, own.applied, start, first, about=about)
        if not found.is_better:
            text = f"{name}: not better than before on noise that it has not seen; nothing changes"
            warnings.warn(text, precision.DiagnosisWarning, stacklevel=2)
        done = own.settled(start, found.values, draft) if found.is_better else draft
        done = dataclasses.replace(done, losses={**draft.losses, name: found.losses})
        return done.billed(evaluations(task, num_steps), num_steps)

    low = "" if rank is None else f" of rank {rank}"
    name = f"training{low}: {objective.name}"
    return Cure(name, TRAIN, apply)
