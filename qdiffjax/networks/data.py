"""Images in [-1, 1], NHWC, with labels: IDX files, npz files, folders, and what needs no file."""

import contextlib
import gzip
import importlib.util
import io
import itertools
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import require
from qdiffjax.networks import made

MAX_CLASSES = 2**31 - 1  # as int32, with one more for "no class"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Dataset(NamedTuple):
    """images [n, h, w, c] float32 in [-1, 1]; labels [n] int32 in 0 ... classes - 1, or None.

    Of videos [n, frames, h, w, c], of points [n, 2].
    """

    images: np.ndarray
    labels: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1


def to_unit(images):
    """Map uint8 pixels [n, h, w] or [n, h, w, c] to float32 in [-1, 1], [n, h, w, c]."""
    images = np.asarray(images)
    require(
        images.dtype == np.uint8,
        got=f"{images.dtype} pixels",
        expected="uint8 in 0..255",
        remedy="convert them: (255 * images).round().astype('uint8')",
    )
    images = images[..., None] if images.ndim == 3 else images
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(images):
    """Map images in [-1, 1] to uint8 pixels, clipped and rounded to nearest."""
    return np.round((np.clip(np.asarray(images), -1, 1) + 1) * 127.5).astype(np.uint8)


def read_idx(path):
    """Read one IDX file (LeCun's MNIST format), gzipped or not, into a uint8 array."""
    path = Path(path)
    with _whole(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
        raw = f.read()
    start = 4 + 4 * raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    require(4 < start <= len(raw), path, got=f"magic {raw[:4].hex()}",
            expected="an IDX file of unsigned bytes, of one axis at least",
            remedy="download the file again")  # fmt: skip
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    require(
        len(raw) - start == math.prod(shape), path, got=f"{len(raw) - start} bytes of pixels",
        expected=f"{shape}, as its header says", remedy="the file is damaged, fetch it again",
    )  # fmt: skip
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def digits() -> np.ndarray:
    """Return the 1797 handwritten digits of scikit-learn: [1797, 8, 8, 1] in [-1, 1]."""
    return load("digits").images


def load(path, split: str = "train", shape: Sequence[int] = ()) -> Dataset:
    """Load images in [-1, 1] and, where there are any, their labels.

    Args:
      path: one of
        "digits", the 8x8 digits of scikit-learn (which have no split: always all);
        "moving-digits", videos of them, see `made.moving`; "mixture", points, see `made.points`;
        an .npz: uint8 images of rank 3 or 4 and labels, as arrays of any names (names that contain
          the split win), or JPEGs as `header`, `<split>_bytes`, `<split>_offsets`, `<split>_y`;
        an IDX file of images (labels from the `labels-idx1` file beside it);
        a folder of IDX files `train-images*`, `train-labels*` (or `t10k-*` for the test split);
        a folder of image files of one size; its subfolders, in the order of their names, are the
          classes; a subfolder named as the split is entered first.
      split: "train" or "test".
      shape: what a sample is to have; larger images are averaged over squares, see `shrunk`, and
        () takes them as they are.

    Raises:
      FileNotFoundError: nothing at `path`, or no images in the folder; says what was found.
      ValueError: no usable images, images of several sizes, labels that do not fit them, a file
        that is damaged, or images that no averages of squares bring to `shape`.
    """
    dataset = _load(path, split)
    return dataset._replace(images=shrunk(dataset.images, shape)) if shape else dataset


def some(dataset: Dataset, num: int, seed: int = 0) -> Dataset:
    """Return `num` of the images with their labels, drawn by chance; all if there are fewer.

    Files and folders are often sorted by class, so that their first images are of one.
    """
    rows = np.random.default_rng(seed).permutation(len(dataset.images))[:num]
    labels = None if dataset.labels is None else dataset.labels[rows]
    return Dataset(dataset.images[rows], labels)


def shrunk(images, shape: Sequence[int]) -> np.ndarray:
    """Return images [n, *shape]: the means over squares of k x k pixels, whatever k is needed.

    Raises:
      ValueError: the images have another shape, and no whole k leads from it to `shape`.
    """
    own, shape = images.shape[1:], tuple(shape)
    if own == shape:
        return images
    k = own[0] // shape[0]
    require(
        len(own) == len(shape) == 3 and own == (k * shape[0], k * shape[1], shape[2]),
        got=f"images of shape {own}", expected=f"{shape}, or a whole multiple of its sides",
        remedy="name the data that the network was trained on",
    )  # fmt: skip
    height, width, channels = shape
    squares = images.reshape(-1, height, k, width, k, channels)
    return squares.mean(axis=(2, 4), dtype=np.float32)


def _load(path, split: str) -> Dataset:
    """Load images and labels as `load` does, in the shape that they have."""
    if str(path) in WITHOUT_FILES:
        return WITHOUT_FILES[str(path)]()
    path = Path(path)
    require(
        path.exists(), got=f"no data at {path}",
        expected=f"{', '.join(map(repr, WITHOUT_FILES))}, an .npz, an IDX file, or a folder with "
        "one",
        remedy="on Debian, Fashion-MNIST is the package dataset-fashion-mnist",
        error=FileNotFoundError,
    )  # fmt: skip
    if path.is_dir():
        images, labels = _read_folder(path, split)
    elif path.suffix == ".npz":
        images, labels = _read_npz(path, split)
    else:
        images, labels = _read_idx_pair(path)
    return _checked(path, images, labels)


@contextlib.contextmanager
def _whole(path):
    """Say in one sentence that a file is damaged, whatever reading it raises.

    Raises:
      ValueError: it does; files that cannot be opened keep their own error.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # zip, zlib, NumPy and Pillow have many for bytes that are changed
        raise ValueError(f"{path}: got a damaged file ({error}), expected a whole one; fetch it "
                         "again.") from error  # fmt: skip


def _digits():
    require(importlib.util.find_spec("sklearn"), "digits", got="no scikit-learn",
            expected="it installed", remedy="pip install 'qdiffjax[digits]'",
            error=ImportError)  # fmt: skip
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = (stored.images.astype(np.float32) / 8.0 - 1.0)[..., None]
    return Dataset(images, stored.target.astype(np.int32))


def _moving_digits():
    images, labels = _digits()
    videos = made.moving(images)
    return Dataset(videos, np.repeat(labels, len(videos) // len(images)))


# The data that needs no file, by name.
WITHOUT_FILES = {
    "digits": _digits, "moving-digits": _moving_digits, "mixture": lambda: Dataset(made.points()),
}  # fmt: skip


def _checked(path, images, labels):
    require(images.ndim in (3, 4) and images.size, path, got=f"images of shape {images.shape}",
            expected="[n, h, w] or [n, h, w, c], none of them 0",
            remedy="save the images with those axes")  # fmt: skip
    if labels is None:
        return Dataset(to_unit(images))
    labels = np.asarray(labels)
    integers = np.issubdtype(labels.dtype, np.integer)
    range_ = (labels.min(initial=0), labels.max(initial=0)) if integers else None
    require(
        labels.shape == images.shape[:1] and range_ and range_[0] >= 0 and range_[1] < MAX_CLASSES,
        path, got=f"{len(images)} images and {labels.dtype} labels of shape {labels.shape} in "
        f"{range_}", expected=f"one label in 0 ... {MAX_CLASSES - 1} for each image",
            remedy="number the classes from 0",
    )  # fmt: skip
    return Dataset(to_unit(images), labels.astype(np.int32))


def _read_idx_pair(path):
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = read_idx(beside) if beside != path and beside.is_file() else None
    return read_idx(path), labels


def _read_folder(path, split):
    idx = sorted(path.glob(("train" if split == "train" else "t10k") + "-images*"))
    if idx:
        return _read_idx_pair(idx[0])
    root = path / split if (path / split).is_dir() else path
    classes = sorted(p for p in root.iterdir() if p.is_dir())
    groups = [sorted(_pictures(p)) for p in classes] if classes else [sorted(_pictures(root))]
    files = [f for group in groups for f in group]
    names = ", ".join(p.name for p in sorted(path.iterdir())[:8]) or "nothing"
    require(files, path, got=f"a folder with {names}", expected="train-images* or image files",
            error=FileNotFoundError,
            remedy="name the folder that holds the files themselves")  # fmt: skip
    images = [_picture(f) for f in files]
    for file, image in zip(files, images, strict=True):
        require(
            image.shape == images[0].shape, file, got=f"shape {image.shape}",
            expected=f"{images[0].shape}, one size and colour mode as {files[0]}",
            remedy="convert them first",
        )  # fmt: skip
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return np.stack(images), labels if classes else None


def _pictures(folder):
    return (f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)


def _picture(file):
    """Decode one image file or buffer: uint8 [h, w] if grey, else [h, w, 3]."""
    from PIL import Image

    with _whole(file if isinstance(file, Path) else "an image"), Image.open(file) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _read_npz(path, split):
    with _whole(path), np.load(path) as archive:
        arrays = dict(archive)
    if "header" in arrays and f"{split}_offsets" in arrays:
        with _whole(path):
            return _read_jpegs(arrays, split), arrays.get(f"{split}_y")
    # Names of this split first; stable, so the stored order otherwise.
    stored = sorted(arrays.items(), key=lambda p: split not in p[0])
    pictures = [a for _, a in stored if a.dtype == np.uint8 and a.ndim in (3, 4)]
    require(
        pictures,
        path,
        got=list(arrays),
        expected="a uint8 array of rank 3 or 4",
        remedy="save the images under one name",
    )
    images = pictures[0]
    fits = [
        a.ravel() for _, a in stored
        if np.issubdtype(a.dtype, np.integer) and a.shape in ((len(images),), (len(images), 1))
    ]  # fmt: skip
    return images, fits[0] if fits else None


def _read_jpegs(arrays, split):
    header, raw = arrays["header"].tobytes(), arrays[f"{split}_bytes"].tobytes()
    ends = arrays[f"{split}_offsets"].astype(np.int64)
    files = (header + raw[a:b] for a, b in itertools.pairwise(ends))
    return np.stack([_picture(io.BytesIO(f)) for f in files])
