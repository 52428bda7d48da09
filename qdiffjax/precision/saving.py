"""Quantized weights on disk, packed, with the recipe and ranges that they belong to."""

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
from qdiffjax.precision.quantized import Quantized
from qdiffjax.precision.recipe import Recipe
from qdiffjax.precision.row_codes import RowCodes
from qdiffjax.precision.settings import assign
from qdiffjax.precision.weights import round_weights
from qdiffjax.quant import PackedQTensor, QTensor, pack, unpack

HEADER = "recipe.json"


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

    One sealed zip file: JSON, and for each weight its bytes, scales and zero points.

    Args:
      path: of the file; what is there is replaced.
      calibration, recipe, sites, activations, edge_margin, rounding: as for `lower`.

    Returns:
      The bytes of codes, scales and zero points.

    Raises:
      ValueError: what `lower` refuses, a format without a name.
    """
    require("round_fn" not in rounding, "save_quantized", got="round_fn",
            expected="codes that stay from call to call", remedy="leave it out")  # fmt: skip
    chosen = assign(calibration, recipe, rounding, sites=sites, activations=activations,
                    edge_margin=edge_margin)  # fmt: skip
    c = chosen.calibration
    whole = Recipe(chosen.recipe.bits, chosen.recipe.phases, c.ranges)
    low, high = next(iter(c.ranges.values()))[0]
    is_dynamic = chosen.grid_fn(low, high, 8).scale is None
    arrays: dict[str, np.ndarray] = {}
    formats: dict[str, Any] = {}
    for number, table in enumerate(map(Recipe, whole.tables)):
        weights = round_weights(c.weights, c.sites, table, weight_codes, **chosen.rounding)
        for name, codes in weights.items():
            key = f"{number}/{name}"
            rows = codes if isinstance(codes, RowCodes) else None
            packed = pack(codes if rows is None else rows.held)
            arrays[f"{key}:codes"] = np.asarray(packed.data)
            arrays[f"{key}:scale"] = np.asarray(packed.scale)
            if packed.zero_point is not None:
                arrays[f"{key}:zero_point"] = np.asarray(packed.zero_point)
            formats[key] = [str(OperandFormat(packed.format)), list(packed.shape)]
            formats[key] += [] if rows is None else [list(rows.shape), list(rows.axes)]
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
      formats: your own formats by name.
      options: `path` of the kernels, as for `lower`.

    Raises:
      ValueError: damaged bytes, or codes of another network.
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
    codes: dict[tuple[int, str], QTensor | RowCodes] = {}
    for key, (text, held, *rows) in header["weights"].items():
        number, _, name = key.partition("/")
        shape, axes = rows or (held, None)
        require(shapes.get(name) == tuple(shape), name, got=f"codes of shape {shape}",
                expected=f"{shapes.get(name)}, as the network has",
                remedy="calibrate the network that was saved")  # fmt: skip
        zero = arrays.get(f"{key}:zero_point")
        packed = PackedQTensor(
            jnp.asarray(arrays[f"{key}:codes"]), jnp.asarray(arrays[f"{key}:scale"]),
            None if zero is None else jnp.asarray(zero),
            parse_operand(text, formats).format, tuple(held),
        )  # fmt: skip
        found = narrow(unpack(packed))
        whole = found if axes is None else RowCodes(found, tuple(shape), tuple(axes))
        codes[int(number), name] = whole
    numbers = iter(range(len(recipe.tables)))

    def weights_of(table: Recipe) -> dict[str, Any]:
        own = next(numbers)
        return {name: codes[own, name] for name in table.bits if (own, name) in codes}

    return lowered(chosen, inputs_of(chosen, weights_of, chosen.grid_fn), **options)
