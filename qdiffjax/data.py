"""Images as arrays in [-1, 1], NHWC: IDX files, npz files, folders, and scikit-learn's digits."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np


def to_unit(images):
    """Map uint8 pixels [n, h, w] or [n, h, w, c] to float32 in [-1, 1], [n, h, w, c]."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"to_unit got {images.dtype} pixels, expected uint8 in 0..255.")
    images = images[..., None] if images.ndim == 3 else images
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(images):
    """Map images in [-1, 1] to uint8 pixels, clipped and rounded to nearest."""
    return np.round((np.clip(np.asarray(images), -1, 1) + 1) * 127.5).astype(np.uint8)


def read_idx(path):
    """Read one IDX file (LeCun's MNIST format), gzipped or not, into a uint8 array."""
    path = Path(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
        raw = f.read()
    start = 4 + 4 * raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    if not start or len(raw) < start:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes (magic {raw[:4].hex()}).")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of pixels, its header says {shape}; the file "
            "is damaged, fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def digits():
    """Return the 1797 handwritten digits of scikit-learn: [1797, 8, 8, 1] in [-1, 1]."""
    from sklearn.datasets import load_digits

    return (load_digits().images.astype(np.float32) / 8.0 - 1.0)[..., None]


def load_images(path):
    """Load training images [n, h, w, c] in [-1, 1] from `path`.

    Args:
      path: the word "digits"; an .npz file (its first uint8 array of rank 3 or 4); an IDX file;
        or a folder that holds a `train-images*` IDX file.

    Raises:
      FileNotFoundError: nothing at `path`, or no images in the folder; says what was found.
      ValueError: the file holds no uint8 images.
    """
    if str(path) == "digits":
        return digits()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No data at {path}: expected 'digits', an .npz, an IDX file, or a folder with one. "
            "On Debian, Fashion-MNIST is the package dataset-fashion-mnist."
        )
    if path.is_dir():
        found = sorted(path.glob("train-images*"))
        if not found:
            names = ", ".join(p.name for p in sorted(path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"No train-images* in {path}; it holds {names}.")
        path = found[0]
    if path.suffix != ".npz":
        return to_unit(read_idx(path))
    with np.load(path) as arrays:
        stored = (arrays[name] for name in arrays)
        images = [a for a in stored if a.dtype == np.uint8 and a.ndim in (3, 4)]
        if not images:
            raise ValueError(f"{path} holds no uint8 array of rank 3 or 4; it has {list(arrays)}.")
        return to_unit(images[0])
