"""Files of named arrays in the format safetensors, read without a library.

    8 bytes, little-endian: n | n bytes of JSON: {name: {dtype, shape, data_offsets}} | the arrays

Offsets count from the end of the JSON, and the arrays lie one after another without gaps, so that
a file that was cut or padded is seen. github.com/huggingface/safetensors, README, "Format".
"""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
REMEDY = "fetch it again"


def read_tensors(path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name, mapped from the disk and read when they are used.

    Raises:
      FileNotFoundError: there is no file.
      ValueError: it is not such a file, or not all of it; says what does not fit.
    """
    path = Path(path)
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    require(len(data) >= 8 and length <= len(data) - 8, str(path), got=f"{len(data)} bytes",
            expected="a header of 8 bytes and as many as it says",
            remedy=REMEDY)  # fmt: skip
    body = data[8 + length :]
    entries = _entries(path, data[8 : 8 + length].tobytes())
    end = 0
    for name, (_, _, first, last) in sorted(entries.items(), key=lambda item: item[1][2:]):
        require(first == end, f"{name} in {path}", got=f"an array from byte {first}",
                expected=f"from {end}, where the one before ends", remedy=REMEDY)  # fmt: skip
        end = last
    require(end == len(body), str(path), got=f"{len(body)} bytes of arrays",
            expected=f"{end} as of its header", remedy=REMEDY)  # fmt: skip
    return {
        name: body[first:last].view(dtype).reshape(shape)
        for name, (dtype, shape, first, last) in entries.items()
    }


def _entries(path: Path, header: bytes) -> dict[str, tuple[np.dtype, tuple[int, ...], int, int]]:
    """Return dtype, shape, first and last byte of each array of a header."""
    try:
        raw = json.loads(header)
        entries = {
            name: (_dtype(path, name, entry["dtype"]), tuple(entry["shape"]),
                   *entry["data_offsets"])
            for name, entry in raw.items() if name != "__metadata__"
        }  # fmt: skip
        for name, (dtype, shape, first, last) in entries.items():
            size = math.prod(shape) * dtype.itemsize
            require(last - first == size and min(shape, default=0) >= 0,
                    f"{name} in {path}", got=f"{last - first} bytes",
                    expected=f"those of {dtype.name} {list(shape)}", remedy=REMEDY)  # fmt: skip
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: got a header that is none ({type(error).__name__}: {error}), expected JSON "
            f"of dtype, shape and data_offsets by name; {REMEDY}."
        ) from error
    return entries


def _dtype(path: Path, name: str, word: str) -> np.dtype:
    require(word in DTYPES, f"{name} in {path}", got=f"dtype {word}",
            expected=f"one of {', '.join(DTYPES)}", remedy="save it in float32")  # fmt: skip
    return np.dtype(DTYPES[word])
