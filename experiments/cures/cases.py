"""The cures that are compared: what each adds to a recipe of widths."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from qdiffjax import strategies
from qdiffjax._checks import require
from qdiffjax.sites import Site
from qdiffjax.strategies import Cure

NONE = "none"
SPLIT = "skips split"


class Case(NamedTuple):
    """A recipe in words and the cures on top of it.

    rank: of low-rank parts, which its stored bits depend on.
    """

    words: str
    cures: tuple[Cure, ...] = ()
    rank: int = 0


def check_recipe(words: str) -> None:
    """Refuse what is no pair of widths, such as W4A8."""
    require(re.fullmatch(r"W\d+A\d+", words), "recipes", got=repr(words),
            expected="widths of weights and activations",
            remedy="such as W4A8")  # fmt: skip


def cases(words: str, num_steps: int, key, learn_steps: int) -> dict[str, Case]:
    """Return {name: case} of a recipe such as "W4A8"; the first is the front door's default.

    Args:
      words: widths of weights and activations.
      num_steps: of the sampler.
      key: of what is random in the cures.
      learn_steps: optimizer steps of each block, or of the whole network.
    """
    check_recipe(words)
    weights, activations = words.split("A")
    shaped = f"{weights} shaped A{activations} shaped"
    turn = strategies.rotation(key)

    def each(**cures: Any) -> dict[str, Case]:
        return {name.replace("_", " "): Case(words, (cure,)) for name, cure in cures.items()}

    table = {NONE: Case(words)}
    table |= each(clips_mse=strategies.clips("mse"), clips_gaussian=strategies.clips("gaussian"),
                  clips_percentile=strategies.clips("percentile"), rotation=turn,
                  smoothing=strategies.smoothing(),
                  smoothing_in_4_ranges=strategies.smoothing(0.5, 4))  # fmt: skip
    table[SPLIT] = Case(words, (strategies.split_skips(),))
    table["low rank"] = Case(words, (strategies.low_rank(2),), 2)
    table["smoothing, low rank (SVDQuant)"] = Case(
        words, (strategies.smoothing(), strategies.low_rank(2)), 2
    )
    table |= each(
        GPTQ=strategies.gptq(), AdaRound=strategies.adaround(),
        reconstruction=strategies.reconstruction(learn_steps, unit="network"),
        reconstruction_with_drop=strategies.reconstruction(learn_steps, unit="network", drop=0.5),
        bias_correction=strategies.bias_correction(),
        bias_correction_by_step=strategies.bias_correction(by_call=True),
        time_path_cached=strategies.cached_time_path(), static=strategies.static_clips(),
        static_by_step=strategies.static_clips(num_steps),
    )  # fmt: skip
    table["differences (MoDiff)"] = Case(f"{words} difference")
    table["shaped weights"] = Case(f"{weights} shaped A{activations}")
    table["shaped"] = Case(shaped)
    table["shaped, best of 8 phases"] = Case(shaped, (strategies.chosen_phases(8),))
    table |= each(PTQD=strategies.ptqd(), D2_DPM=strategies.joint_gaussian(),
                  TAC=strategies.timestep_aware(), moments=strategies.drift(),
                  compensation=strategies.compensation(),
                  compensation_and_gain=strategies.compensation(ridge=0.1))  # fmt: skip
    free = (strategies.cached_time_path(),)
    table["rotation, GPTQ"] = Case(words, (turn, strategies.gptq()))
    table["time, rotation, GPTQ, bias"] = Case(
        words, (*free, turn, strategies.gptq(), strategies.bias_correction())
    )
    table["time, rotation, compensation"] = Case(words, (*free, turn, strategies.compensation()))
    held = strategies.compensation(ridge=0.1)
    table["time, rotation, GPTQ, compensation and gain"] = Case(
        words, (*free, turn, strategies.gptq(), held)
    )
    table["shaped, time"] = Case(shaped, free)
    table["shaped, time, compensation and gain"] = Case(shaped, (*free, held))
    table["shaped, time, rotation"] = Case(shaped, (*free, turn))
    table["shaped, time, rotation, compensation"] = Case(
        shaped, (*free, turn, strategies.compensation())
    )
    table["shaped, time, rotation, compensation and gain"] = Case(shaped, (*free, turn, held))
    # What the last calls lose nothing makes up for: a bit more there is 0.1 bit on average.
    last, wider = num_steps - num_steps // 10, f"W{int(weights[1:]) + 1} shaped A{activations}"
    if last < num_steps:
        tail = f"{shaped}; steps {last}-{num_steps - 1}: {wider} shaped"
        table["shaped, last tenth a bit more, time, rotation, compensation and gain"] = Case(
            tail, (*free, turn, held)
        )
        table["the same with the best of 8 phases"] = Case(
            tail, (*free, turn, strategies.chosen_phases(8), held)
        )
    return table


def fitting(table: Mapping[str, Case], sites: Iterable[Site]) -> dict[str, Case]:
    """Return the cases that fit a network with these sites: skips are split where there are any."""
    has_skips = any(site.pieces for site in sites)
    return {name: case for name, case in table.items() if has_skips or name != SPLIT}


def key_of(seed: int, words: str) -> jax.Array:
    """Return the key of the cures of a seed and recipe."""
    return jax.random.fold_in(jax.random.key(seed), int("".join(re.findall(r"\d", words))))
