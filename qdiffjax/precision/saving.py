"""Quantized weights on disk, packed, with the recipe and ranges that they belong to."""

import contextlib
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdiffjax import _files
from qdiffjax._checks import require
from qdiffjax.kernels import narrow
from qdiffjax.precision.calibration import Calibration
from qdiffjax.precision.codes import weight_codes
from qdiffjax.precision.formats import DYNAMIC, STATIC, OperandFormat, parse_operand
from qdiffjax.precision.inputs import inputs_of
from qdiffjax.precision.lowering import lowered
from qdiffjax.precision.own_codes import OwnCodes, with_codes
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.recipe import Recipe
from qdiffjax.precision.row_codes import RowCodes
from qdiffjax.precision.settings import assign
from qdiffjax.precision.weights import round_weights
from qdiffjax.quant import (
    E4M3FN,
    E8M0,
    AlternatingCodes,
    BlockFormat,
    CodebookFormat,
    IntFormat,
    PackedQTensor,
    QTensor,
    pack,
    stored_scales,
    unpack,
)

HEADER = "recipe.json"
WORDS = ("codes", "scale", "zero_point", "seed", "tensor_scale")  # of the arrays of a weight
SCALE_FORMATS: dict[str, Any] = {"e8m0": E8M0, "e4m3": E4M3FN}  # of blocks, a byte a scale


def save_quantized(
    path,
    calibration: Calibration,
    recipe: Recipe | str,
    *,
    sites: Iterable[str] | None = None,
    activations: str | None = None,
    edge_margin: float | None = None,
    **rounding,
) -> int:
    """Write a recipe's codes, each in as many bits as it has, its formats and its ranges.

    One sealed zip file: JSON, and for each weight its bytes, scales and zero points. Scales of MX
    blocks and of NVFP4 are bytes, E8M0 and E4M3, beside NVFP4's float32 of the tensor.

    Args:
      path: of the file; what is there is replaced.
      calibration, recipe, sites, activations, edge_margin, rounding: as for `lower`.

    Returns:
      The bytes of codes, scales and zero points.

    Raises:
      ValueError: what `lower` refuses, a format without a name. Your own has codes if it has
        `levels()`.
    """
    round_fn = rounding.get("round_fn")
    codes_fn: Any = weight_codes if round_fn is None else getattr(round_fn, "codes_fn", None)
    require(codes_fn is not None, "save_quantized", got="round_fn without codes",
            expected="codes that stay, or that alternate: precision.shaped(key, extra_bits=k)",
            remedy="leave it out")  # fmt: skip
    chosen = assign(calibration, recipe, rounding, sites=sites, activations=activations,
                    edge_margin=edge_margin)  # fmt: skip
    c = chosen.calibration
    whole = Recipe(chosen.recipe.bits, chosen.recipe.phases, c.ranges)
    low, high = next(iter(c.ranges.values()))[0]
    is_dynamic = chosen.grid_fn(low, high, 8).scale is None
    arrays: dict[str, np.ndarray] = {}
    formats: dict[str, Any] = {}
    for number, table in enumerate(map(Recipe, whole.tables)):
        weights = round_weights(c.weights, c.sites, table,
                                **chosen.rounding | {"round_fn": codes_fn})  # fmt: skip
        for name, codes in weights.items():
            key = f"{number}/{name}"
            formats[key], parts = _written(codes, c.weights[name], table.bits[name].weight)
            arrays |= {f"{key}:{word}": np.asarray(part) for word, part in parts.items()}
    header = {"recipe": whole.to_json(), "weights": formats,
              "activations": DYNAMIC if is_dynamic else STATIC}  # fmt: skip
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(HEADER, json.dumps(header))
        for key, array in arrays.items():
            own = io.BytesIO()
            np.save(own, array)
            archive.writestr(f"{key}.npy", own.getvalue())
    _files.write({Path(path): _files.sealed(file.getvalue())})
    return sum(array.nbytes for array in arrays.values())


def load_quantized(path, calibration: Calibration, formats: Any = None, **options) -> Quantized:
    """Return what `lower` returned for the recipe that was saved, from its codes, bit for bit.

    Args:
      path: of the file.
      calibration: of the same network; its own weights and ranges are not read.
      formats: your own formats by name, those of `precision.FORMATS` being known.
      options: `path` of the kernels, as for `lower`.

    Raises:
      ValueError: damaged bytes, codes of another network, a format that is not known or has other
        levels than when it was saved.
    """
    data = Path(path).read_bytes()
    _files.check_sealed(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = json.loads(archive.read(HEADER))
        arrays = {name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)))
                  for name in archive.namelist() if name != HEADER}  # fmt: skip
    recipe = Recipe.from_json(header["recipe"], calibration.sites, formats)
    chosen = assign(calibration, recipe, {}, activations=header["activations"])
    shapes = {s.name: s.shapes[s.weight] for s in calibration.sites if s.weight is not None}
    codes: dict[tuple[int, str], Any] = {}
    for key, how in header["weights"].items():
        number, _, name = key.partition("/")
        own = {word: jnp.asarray(arrays[f"{key}:{word}"]) for word in WORDS
               if f"{key}:{word}" in arrays}  # fmt: skip
        found = _read(how, own, formats, name)
        require(shapes.get(name) == found.shape, name, got=f"codes of shape {list(found.shape)}",
                expected=f"{shapes.get(name)}, as the network has",
                remedy="calibrate the network that was saved")  # fmt: skip
        codes[int(number), name] = found

    def weights_of(table: Recipe) -> dict[str, Any]:
        """Return the codes of sites, which tables that round a weight alike have in common."""
        places = {name: [n for n, other in enumerate(recipe.tables) if (n, name) in codes
                         and other[name].weight == bits.weight]
                  for name, bits in table.bits.items()}  # fmt: skip
        return {name: codes[numbers[0], name] for name, numbers in places.items() if numbers}

    return lowered(chosen, inputs_of(chosen, weights_of, chosen.grid_fn), **options)


def _written(codes: Any, w: Any, entry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how codes of w are stored, as JSON, and their arrays by word."""
    how: dict[str, Any] = {}
    own: dict[str, Any] = {}
    held = codes
    if isinstance(codes, RowCodes):
        how |= {"shape": codes.shape, "axes": codes.axes}
        held = codes.held
    if isinstance(held, AlternatingCodes):
        # The weight itself in steps of 2^-k, so that a code takes k bits more.
        how |= {"bits": held.format.bits, "extra_bits": held.extra_bits}
        own["seed"] = held.seed
        wide = IntFormat(held.format.bits + held.extra_bits)
        held = QTensor(held.fine, held.scale, None, wide)
    packed = _packed(held, w, getattr(entry, "format", None))
    if packed.scale_format is not None:
        how["scales"] = next(w for w, f in SCALE_FORMATS.items() if f == packed.scale_format)
    if packed.tensor_scale is not None:
        own["tensor_scale"] = packed.tensor_scale
    format: Any = packed.format
    if isinstance(format, OwnCodes | CodebookFormat):
        how["levels"] = format.levels().tolist()
    format = getattr(format, "own", format)
    how |= {"format": str(OperandFormat(format)), "held": packed.shape}
    own |= {"codes": packed.data, "scale": packed.scale}
    return how, own if packed.zero_point is None else own | {"zero_point": packed.zero_point}


def _packed(held: QTensor, w: Any, format: Any) -> PackedQTensor:
    """Return packed codes, the scales of a block format as its bytes."""
    if isinstance(format, BlockFormat):
        stored, factor = stored_scales(jnp.max(jnp.abs(w)), format)
        with contextlib.suppress(ValueError):  # of float64, or beyond the exponents of float32
            return pack(held, scale_format=stored, tensor_scale=factor)
    return pack(held)


def _read(how: dict[str, Any], own: dict[str, Any], formats: Any, what: str) -> Any:
    """Return the codes that were written."""
    format = with_codes(parse_operand(how["format"], formats).format, what)
    require("levels" not in how or format.levels().tolist() == how["levels"], what,
            got=f"other levels of {how['format'][1:]!r}", expected="those that were saved",
            remedy="pass the format as it was: formats={name: format}")  # fmt: skip
    held = unpack(PackedQTensor(own["codes"], own["scale"], own.get("zero_point"), format,
                                tuple(how["held"]), SCALE_FORMATS.get(how.get("scales", "")),
                                own.get("tensor_scale")))  # fmt: skip
    codes: Any = narrow(held)
    if "extra_bits" in how:
        own_format = IntFormat(how["bits"])
        codes = AlternatingCodes(held.codes, own["seed"], held.scale, own_format, how["extra_bits"])
    return RowCodes(codes, tuple(how["shape"]), tuple(how["axes"])) if "axes" in how else codes
