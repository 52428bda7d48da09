"""Cures that leave the product as it is and change in which basis it is rounded.

x w = B(x) B^-T(w):  smoothing, rotation, reordering;      x w = x (w - L) + x L:  low rank

Where the recipe rounds activations alone, weights change their basis with them, in full precision.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax._checks import SHARE, check_count, check_key, check_type, checked, require
from qdiffjax._typing import Array
from qdiffjax.precision import SiteBits, Switch
from qdiffjax.precision.around import Around, Diagonal, Order, Rotation, largest_block
from qdiffjax.precision.formats import is_grouped
from qdiffjax.precision.rules import grids_of
from qdiffjax.precision.shaping import site_key
from qdiffjax.quant import BlockFormat, RoundingSequence
from qdiffjax.sites import Site
from qdiffjax.strategies.drafts import BASIS, SPLIT, Cure, Draft
from qdiffjax.strategies.statistics import (
    channel_maxima,
    weight_matrix,
    weight_operand,
    with_matrices,
)
from qdiffjax.strategies.tables import explicit

SMALLEST = 1e-5  # of a channel's factor, as in SmoothQuant's code


def smoothing_factors(activation, weight, alpha) -> Array:
    """Return what channels of an activation are divided by [*lead, channels].

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

    Xiao et al. 2023 (SmoothQuant), eq. 4; 1 where either is zero.

    Args:
      activation: max |X_j| [*lead, channels].
      weight: max |W_j| [channels].
      alpha: share of the difficulty that moves to the weights.
    """
    wide = jnp.broadcast_to(weight, jnp.shape(activation))
    usable = (activation > 0) & (wide > 0)
    safe = jnp.where(usable, activation, 1.0), jnp.where(usable, wide, 1.0)
    factor = safe[0] ** alpha / safe[1] ** (1 - alpha)
    return jnp.where(usable, jnp.maximum(factor, SMALLEST), 1.0)


@checked(alpha=SHARE, num_ranges=check_count)
def smoothing(
    alpha: float = 0.5, num_ranges: int = 1, *, sites: Sequence[str] | None = None
) -> Cure:
    """Return the cure that moves the range of activation channels to the weights.

    SmoothQuant (Xiao et al. 2023, eqs. 3 and 4). With several ranges of the sampler's calls each
    has factors and a rounded weight of its own, as ViDiT-Q (Zhao et al. 2024, section 4.2), at
    num_ranges times the storage of the weights. Costs a pass over the states.

    Raises (when applied):
      ValueError: static activations, whose ranges are those of another basis.
    """

    def apply(draft: Draft) -> Draft:
        names = _turned(draft, sites)
        maxima = channel_maxima(draft, names)
        num_calls = draft.steps.t.shape[0]
        for name in names:
            weight = _weight_maxima(draft, name)
            if num_ranges == 1:
                scale = smoothing_factors(jnp.max(maxima[name], 0), weight, alpha)
            else:
                scale = _by_range(draft, maxima[name], weight, alpha, num_ranges, num_calls)
            draft = _with_basis(draft, name, Diagonal(scale))
        return draft.billed(evaluations=draft.states.num)

    ranges = f" in {num_ranges} ranges" if num_ranges > 1 else ""
    return Cure(f"smoothing {alpha:g}{ranges}".replace("0.", "."), BASIS, apply,
                lambda draft: _turned(draft, sites))  # fmt: skip


def _turned(draft: Draft, sites: Sequence[str] | None) -> tuple[str, ...]:
    """Return the sites whose products are to round in another basis.

    Raises:
      ValueError: none; static activations there, whose ranges are those of the network's own basis.
    """
    names, inputs = with_matrices(draft, sites, either=True), draft.site_inputs()
    static = [name for name in names if any(
        grid.scale is not None for each in inputs[name].activations for grid in grids_of(each)
    )]  # fmt: skip
    require(not static, ", ".join(static[:3]), got="static activations in another basis",
            expected="dynamic ones, whose grid is that of the data at hand",
            remedy="activations='dynamic', and no word such as 'static' or 'by-step' in the recipe",
            )  # fmt: skip
    return names


def _by_range(draft: Draft, maxima, weight, alpha, num_ranges: int, num_calls: int):
    """Return factors of every call [num_calls, channels], the same within a range of calls."""
    place = np.asarray(draft.states.call) * num_ranges // num_calls
    rows: list[Any] = []
    for k in range(num_ranges):
        seen = maxima[np.flatnonzero(place == k)] if (place == k).any() else maxima
        rows.append(smoothing_factors(jnp.max(seen, 0), weight, alpha))
    return jnp.stack(rows)[np.arange(num_calls) * num_ranges // num_calls]


def _weight_maxima(draft: Draft, name: str) -> Array:
    """Return max |W_j| of every input channel of a weight, in the basis that it has so far."""
    site = draft.sites[name]
    assert site.weight is not None
    axis = precision.group_axis(site, site.weight)
    w = draft.weight(name)
    return jnp.max(jnp.abs(w), tuple(a for a in range(w.ndim) if a != axis))


def _with_basis(draft: Draft, name: str, basis) -> Draft:
    bases = draft.around.get(name, Around()).bases
    return draft.with_around(name, bases=(*bases, basis))


@checked(key=check_key)
def rotation(key, *, sites: Sequence[str] | None = None) -> Cure:
    """Return the cure that mixes channels by a Hadamard matrix with random signs.

        x w = (x D H)(H D w),   H = H_b / sqrt(b),   b the largest power of two in the channels

    Outliers of a channel spread over b of them, so that ranges shrink towards those of a Gaussian
    (QuIP#, Tseng et al. 2024, section 3; QuaRot, Ashkboos et al. 2024). For a convolution channels
    are mixed at every pixel, which zero padding does not disturb. An odd number of channels is left
    as it is: signs alone spread nothing. Costs no network evaluation, and n log2 b additions an
    input at run time.

    Nearest rounding with kept sums loses what it kept, as those are of channels that are no more:
    let `gptq` or `bias_correction` follow, which look at the mean of what is multiplied.

    Raises (when applied):
      ValueError: odd numbers of channels alone; static activations, as for `smoothing`.
    """

    def blocks_of(draft: Draft) -> dict[str, int]:
        names = _turned(draft, sites)
        blocks = {name: largest_block(_num_channels(draft.sites[name])) for name in names}
        require(max(blocks.values()) > 1, "rotation",
                got=f"odd numbers of channels at all {len(blocks)} sites",
                expected="an even one, which can be mixed",
                remedy="leave the cure out: smoothing() takes any number")  # fmt: skip
        return {name: block for name, block in blocks.items() if block > 1}

    def apply(draft: Draft) -> Draft:
        for name, block in blocks_of(draft).items():
            num = _num_channels(draft.sites[name])
            signs = jax.random.rademacher(site_key(key, name), (num,), jnp.float32)
            draft = _with_basis(draft, name, Rotation(signs, block))
        return draft

    return Cure("rotation", BASIS, apply, blocks_of)


def reordering(*, sites: Sequence[str] | None = None) -> Cure:
    """Return the cure that sorts channels by their range, for recipes with groups or blocks.

    Channels of like range then share a scale; the idea of PermuQuant (2026) and RPTQ (Yuan et al.
    2023). Costs a pass over the states, nothing at run time where the order can be folded into the
    layer before.

    Raises (when applied):
      ValueError: neither groups nor blocks, without which it changes nothing; static activations.
    """

    def chosen(draft: Draft) -> tuple[str, ...]:
        names, tables = _turned(draft, sites), explicit(draft)[0].tables
        entries = [entry for table in tables for name in names for entry in table.get(name, ())]
        require("granularity" in draft.options or any(map(is_grouped, entries)), "reordering",
                got=f"neither groups nor blocks at {len(names)} sites",
                expected="some, in which neighbours share a scale",
                remedy="a recipe such as 'W4g32 A8g32'; without, leave the cure out")  # fmt: skip
        return names

    def apply(draft: Draft) -> Draft:
        for name, maxima in channel_maxima(draft, chosen(draft)).items():
            draft = _with_basis(draft, name, Order(jnp.argsort(jnp.max(maxima, 0))))
        return draft.billed(evaluations=draft.states.num)

    return Cure("reordering", BASIS, apply, chosen)


def low_rank_part(matrix: Array, rank: int) -> Array:
    """Return the nearest matrix of a rank to [K, M], by the singular value decomposition.

    Eckart and Young 1936.
    """
    u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
    return jnp.matmul(u[:, :rank] * s[None, :rank], v[:rank], precision="highest")


@checked(rank=check_count)
def low_rank(rank: int = 16, *, sites: Sequence[str] | None = None) -> Cure:
    """Return the cure that keeps a low-rank part of each weight in full precision, beside it.

        x w = Q(x) Q(w - L) + x L,   L = SVD_rank(w)

    SVDQuant (Li et al. 2025), eqs. 5 and 6, after smoothing there. It costs 16 rank (K + M) bits
    of storage and rank (K + M) multiplications a row, see `stored_bits`.
    """

    def chosen(draft: Draft) -> list[str]:
        shapes = {name: weight_matrix(draft.sites[name], draft.calibration.weights[name]).shape
                  for name in with_matrices(draft, sites)}  # fmt: skip
        most = max(min(shape) for shape in shapes.values())
        require(rank < most, "low rank", got=f"rank {rank} of matrices of rank {most} at most",
                expected=f"less than {most}", remedy="keep less of them")  # fmt: skip
        for name, shape in shapes.items():
            require(rank < min(shape) or sites is None, name,
                    got=f"rank {rank} of a matrix {shape}", expected=f"less than {min(shape)}",
                    remedy="keep less of it")  # fmt: skip
        # Of others nothing would be left to round.
        return [name for name, shape in shapes.items() if rank < min(shape)]

    def apply(draft: Draft) -> Draft:
        for name in chosen(draft):
            site = draft.sites[name]
            part = low_rank_part(weight_matrix(site, draft.weight(name)), rank)
            draft = draft.with_around(name, branch=weight_operand(site, part))
        return draft

    return Cure(f"rank {rank}", SPLIT, apply, chosen)


def sequence_of(weight) -> RoundingSequence | None:
    """Return the sequence that a weight is rounded by, at all calls or at some."""
    if isinstance(weight, Switch):
        return next((a for a in weight.alternatives if isinstance(a, RoundingSequence)), None)
    return weight if isinstance(weight, RoundingSequence) else None


def stored_bits(draft: Draft, rank: int = 0) -> float:
    """Return the bits stored for each weight that the recipe rounds, on average.

    Codes, a float32 scale (and zero point) for each of its groups, those of a block format as it
    counts them, 16 bits for each number of the factors of a low-rank part and of channels' factors,
    and every version of a weight and of factors that change with the steps. A weight that is
    rounded anew at every call is stored as itself, in 32 bits: it saves arithmetic and traffic.
    Survey, eq. 13, counts codes alone.

    Args:
      draft: its recipe and cures.
      rank: of its low-rank parts.
    """
    check_type("draft", draft, Draft, remedy="improve(calibration, recipe, cures, steps, key)")
    check_count("rank", rank, least=0)
    names, plain = draft.rounds_weight(), draft.site_inputs()
    found = {name: sequence_of(plain[name].weight) for name in names}
    shaped = {name: sequence for name, sequence in found.items() if sequence is not None}
    grids = {} if shaped else draft.weight_grids()
    entries = explicit(draft)[0].bits
    total = num = 0
    for name in names:
        around = draft.around.get(name, Around())
        extra, versions = 0, 1
        if around.branch is not None:
            extra += 16 * rank * sum(weight_matrix(draft.sites[name], around.branch).shape)
        for basis in around.bases:
            if basis.num_calls is not None:
                versions = len(np.unique(np.asarray(basis.scale), axis=0))
            if isinstance(basis, Diagonal):
                own = 1 if basis.num_calls is None else versions
                extra += 16 * own * jnp.shape(basis.scale)[-1]
        size = draft.calibration.weights[name].size
        if shaped:
            require(name in shaped, name, got="one rounding beside weights rounded anew",
                    expected="all of one kind", remedy="count the two recipes")  # fmt: skip
            bits, scales = 32.0, shaped[name].scale.size
        else:
            grid = grids[name]
            scales = grid.num_scales or grid.scale.size
            scales *= 1 if grid.zero_point is None else 2
            bits = float(np.max(np.asarray(grid.format.bits)))
            block = getattr(entries.get(name, SiteBits()).weight, "format", None)
            if isinstance(block, BlockFormat) and name not in draft.learned:
                bits, scales = float(block.bits), 0  # its scales are in its bits
        total += versions * (bits * size + 32 * scales) + extra
        num += size
    return total / num


def _num_channels(site: Site) -> int:
    assert site.weight is not None
    axis = precision.group_axis(site, site.weight)
    assert axis is not None
    return site.shapes[site.weight][axis]
