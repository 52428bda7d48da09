"""A recipe in words and its defaults: what `quantize` and `lower` choose, and say of it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from qdiffjax._checks import check_names, check_number, require
from qdiffjax.precision.formats import DYNAMIC, STATIC, TENSOR, OperandFormat
from qdiffjax.precision.recipe import Phase, Recipe, SiteBits, check_recipe
from qdiffjax.precision.weights import OPTIONS, keep_channel_sums, output_channels
from qdiffjax.precision.words import recipe_of
from qdiffjax.quant import ActivationGrid, IntFormat, activation_grid
from qdiffjax.sites import match

# All layers but the last, whose few weights cost most at 8 bits; neither what samplers hold in
# float32 nor products of activations, which no weight is saved by and dynamic rounding slows down.
SITES = ("*", "!input", "!output", "!products", "!values", "!last")
EDGE_MARGIN = 1.2  # of static ranges: a few samples do not show the largest pixel of noise


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was chosen for a quantized denoiser, in words that can be printed.

    All are equal, so that denoisers that differ in their settings share a compilation.

    Attributes:
      name: the recipe in words, such as "W8A8", or "recipe" for a table of widths; "" where
        nothing is known.
      activations: how their grids are found.
      edges: what is done to the network's own input and output.
      weights: their granularity and rounding.
      left_out: names of the sites that stay in full precision.
    """

    name: str = dataclasses.field(default="", compare=False)
    activations: str = dataclasses.field(default="", compare=False)
    edges: str = dataclasses.field(default="", compare=False)
    weights: str = dataclasses.field(default="", compare=False)
    left_out: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return (what, is) of each setting."""
        left_out = f"{len(self.left_out)} sites: {', '.join(self.left_out)}"
        return (("recipe", self.name), ("activations", self.activations), ("edges", self.edges),
                ("weights", self.weights),
                ("left out", left_out if self.left_out else "none"))  # fmt: skip

    def __str__(self):
        return "\n".join(f"{what:12s} {text}" for what, text in self.rows())


class Assignment(NamedTuple):
    """What a recipe and options come to.

    recipe: widths by site; calibration: its ranges as they are used; grid_fn: (low, high, bits) ->
    grid of an activation, as kernels take it; rounding: options of `round_weights`.
    """

    recipe: Recipe
    calibration: Any
    grid_fn: Callable[[Any, Any, int], ActivationGrid]
    rounding: dict[str, Any]
    settings: Settings


def assign(
    calibration,
    recipe: Recipe | str,
    rounding: Mapping[str, Any],
    *,
    sites: Iterable[str] | None = None,
    activations: str | None = None,
    edge_margin: float | None = None,
) -> Assignment:
    """Return what a recipe and options come to; see `quantize` for the arguments.

    Raises:
      ValueError: a recipe in words, a glob or an option that does not fit; nothing to quantize; a
        site whose numbers are not real.
    """
    check_calibration(calibration)
    check_names("options", rounding, OPTIONS)
    in_words = isinstance(recipe, str)
    grids = activations or (DYNAMIC if in_words else STATIC)
    require(grids in (DYNAMIC, STATIC), "activations", got=repr(activations),
            expected=f"{DYNAMIC!r} or {STATIC!r}",
            remedy="leave it out for the default")  # fmt: skip
    table = _with_scales(_table(calibration.sites, recipe, sites), grids)
    is_static = grids == STATIC or any(
        getattr(bits.activation, "is_static", False) for t in table.tables for bits in t.values()
    )
    require(edge_margin is None or is_static, "edge_margin",
            got=f"{edge_margin} for dynamic activations", expected="static ones, whose ranges are "
            "known beforehand", remedy="activations='static'")  # fmt: skip
    if edge_margin is not None:
        check_number("edge_margin", edge_margin, above=0)
    else:
        edge_margin = EDGE_MARGIN if in_words and grids == STATIC else 1.0
    if table.ranges is not None:
        calibration = dataclasses.replace(calibration, ranges=table.ranges)
        check_calibration(calibration)
    if in_words and "round_fn" not in rounding:
        rounding = {"adjust_fn": keep_channel_sums} | dict(rounding)
    settings = Settings(
        _title(recipe) if isinstance(recipe, str) else "recipe",
        _activations_text(table, grids, edge_margin), _edges_text(calibration.sites, table),
        _weights_text(rounding),
        tuple(s.name for s in calibration.sites if s.name not in table.names),
    )  # fmt: skip
    return Assignment(
        table, calibration if edge_margin == 1 else calibration.widened(edge_margin),
        static_grid if grids == STATIC else dynamic_grid, dict(rounding), settings,
    )  # fmt: skip


def check_calibration(calibration) -> None:
    """Refuse ranges and weights of another network.

    Raises:
      TypeError: no `Calibration`.
      ValueError: names that are no sites; another number of activations; weights of another shape.
    """
    is_one = all(hasattr(calibration, name) for name in ("sites", "weights", "ranges"))
    require(is_one, "calibration", got=f"a {type(calibration).__name__}",
            expected="a Calibration", remedy="calibrate(denoiser, steps, key)",
            error=TypeError)  # fmt: skip
    sites = {site.name: site for site in calibration.sites}
    for what in ("ranges", "weights"):
        check_names(what, getattr(calibration, what), sites)
    for name, ranges in calibration.ranges.items():
        num = len(sites[name].activations)
        require(len(ranges) == num, "ranges", got=f"{len(ranges)} for {name!r}",
                expected=f"one for each of its {num} activations",
                remedy="calibrate this network")  # fmt: skip
    for name, site in sites.items():
        weight = calibration.weights.get(name)
        shape = None if site.weight is None or weight is None else site.shapes[site.weight]
        require(shape is None or weight.shape == shape, "weights",
                got=f"{list(getattr(weight, 'shape', ()))} for {name!r}", expected=f"{shape}",
                remedy="calibrate this network")  # fmt: skip


def static_grid(low, high, bits: int) -> ActivationGrid:
    """Return the affine unsigned grid over a range, as kernels take it."""
    return activation_grid(low, high, IntFormat(bits, signed=False))


def dynamic_grid(low, high, bits: int) -> ActivationGrid:
    """Return the affine unsigned grid over the range of each token at hand, whatever it was."""
    return ActivationGrid(IntFormat(bits, signed=False))


def _title(words: str) -> str:
    text = " ".join(words.split())
    return text.upper() if text.isalnum() else text


def _table(all_sites, recipe: Recipe | str, globs: Iterable[str] | None) -> Recipe:
    if isinstance(recipe, Recipe):
        check_recipe(recipe, all_sites)
        require(recipe.names, "recipe", got="no sites", expected="widths of some site",
                remedy="use the denoiser itself where nothing is rounded")  # fmt: skip
        chosen = recipe.names if globs is None else match(all_sites, globs)
        return mapped(recipe, lambda table: {n: b for n, b in table.items() if n in chosen})
    require(isinstance(recipe, str), "recipe", got=type(recipe).__name__,
            expected="a Recipe or words", remedy="such as 'W4A8'", error=TypeError)  # fmt: skip
    table = recipe_of(recipe, all_sites, SITES if globs is None else globs)
    require(table.names, "recipe", got=f"{recipe!r} for no site of {len(all_sites)}",
            expected="a layer beside the last",
            remedy="name the sites: sites=('*',)")  # fmt: skip
    return table


def _with_scales(recipe: Recipe, grids: str) -> Recipe:
    """Return the recipe, scales of activations that it leaves open as `activations` says."""

    def chosen(entry: Any) -> Any:
        if not isinstance(entry, OperandFormat) or entry.scales is not None:
            return entry
        is_open = entry.granularity in (None, TENSOR) and entry.format.is_static
        is_block = hasattr(entry.format, "block_size")
        return dataclasses.replace(
            entry, scales=STATIC if grids == STATIC and is_open and not is_block else DYNAMIC
        )

    return mapped(recipe, lambda table: {
        name: bits._replace(activation=chosen(bits.activation)) for name, bits in table.items()
    })  # fmt: skip


def mapped(recipe: Recipe, fn: Callable[[dict[str, SiteBits]], dict[str, SiteBits]]) -> Recipe:
    """Return a recipe whose tables, the phases' before its own, are what fn makes of them."""
    phases = tuple(Phase(phase.steps, fn(phase.bits)) for phase in recipe.phases)
    return dataclasses.replace(recipe, bits=fn(recipe.bits), phases=phases)


def _activations_text(table: Recipe, grids: str, edge_margin: float) -> str:
    entries = [bits.activation for part in table.tables for bits in part.values()]
    if all(entry is None for entry in entries):
        return "in full precision"
    margin = "" if edge_margin == 1 else f", those of the edges times {edge_margin:g}"
    if any(isinstance(entry, OperandFormat) for entry in entries):
        kinds = dict.fromkeys(str(e) for e in entries if isinstance(e, OperandFormat))
        return "by the recipe: " + ", ".join(kinds) + margin.replace("those", "static ranges")
    if grids == DYNAMIC:
        return "dynamic, affine, a grid for each row of a product and each sample of a convolution"
    return f"static, affine, by tensor, over the ranges of all steps{margin}"


def _edges_text(all_sites, table: Recipe) -> str:
    edges = [s.name for s in all_sites if s.kind in ("input", "output")]
    kept = [name for name in edges if name in table.names]
    return f"{' and '.join(kept)} quantized" if kept else "in full precision"


def _weights_text(rounding: Mapping[str, Any]) -> str:
    granularity = rounding.get("granularity", output_channels)
    by = getattr(granularity, "__name__", "granularity of its own").replace("_", " ")
    if "round_fn" in rounding:
        name = getattr(rounding["round_fn"], "__name__", "a function of its own")
        return f"{by}, rounded by {name}"
    keeps = rounding.get("adjust_fn") is keep_channel_sums
    return f"{by}, rounded to nearest{' with the sum of each output channel kept' if keeps else ''}"
