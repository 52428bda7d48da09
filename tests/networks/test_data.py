"""Readers of images against files written here by hand."""

import gzip
import struct

import numpy as np
import pytest

from qdiffjax.networks import data

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 11


def write_idx(path, array, dtype_code=8):
    header = struct.pack(">HBB", 0, dtype_code, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    raw = header + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_an_idx_file_is_read_as_written_alone_or_in_its_folder(tmp_path, name):
    write_idx(tmp_path / name, IMAGES)
    np.testing.assert_array_equal(data.read_idx(tmp_path / name), IMAGES)
    for path in (tmp_path / name, tmp_path, str(tmp_path)):
        got = data.load(path).images
        assert (got.shape, got.dtype) == ((2, 3, 4, 1), np.float32)
        np.testing.assert_array_equal(data.to_uint8(got)[..., 0], IMAGES)


def test_pixels_0_and_255_are_minus_one_and_one_and_every_pixel_returns():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    unit = data.to_unit(pixels)
    assert (unit.min(), unit.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(data.to_uint8(unit)[..., 0], pixels)
    np.testing.assert_array_equal(data.to_uint8([-3.0, 0.0, 3.0]), [0, 128, 255])


def test_an_npz_gives_its_first_images(tmp_path):
    color = np.zeros((2, 3, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", labels=np.arange(2), images=color)
    assert data.load(tmp_path / "a.npz").images.shape == (2, 3, 4, 3)
    np.savez(tmp_path / "b.npz", labels=np.arange(2))
    with pytest.raises(
        ValueError, match=r"got \['labels'\], expected a uint8 array of rank 3 or 4"
    ):
        data.load(tmp_path / "b.npz")


def test_images_shrink_to_means_over_squares_or_say_why_not(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))
    whole = data.load(tmp_path / "a.npz").images
    halves = data.load(tmp_path / "a.npz", shape=(2, 2, 3)).images
    assert halves.dtype == np.float32
    for i, j in np.ndindex(2, 2):
        own = whole[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(halves[0, i, j], own.mean((0, 1)), rtol=1e-6, atol=1e-7)
    assert data.shrunk(whole, whole.shape[1:]) is whole
    for shape in ((3, 3, 3), (2, 4, 3), (2, 2, 1), (8, 8, 3), (2, 2)):
        with pytest.raises(ValueError, match=r"got images of shape \(4, 4, 3\), expected \("):
            data.shrunk(whole, shape)


def test_some_images_are_drawn_by_chance_with_their_labels():
    images = np.repeat(np.arange(60, dtype=np.float32), 4).reshape(60, 2, 2, 1)
    sorted_by_class = data.Dataset(images, np.arange(60, dtype=np.int32) // 20)
    found = data.some(sorted_by_class, 30)
    np.testing.assert_array_equal(found.images[:, 0, 0, 0] // 20, found.labels)
    assert len(np.unique(found.images[:, 0, 0, 0])) == 30  # none twice
    assert min(np.bincount(found.labels, minlength=3)) >= 5
    assert not np.array_equal(data.some(sorted_by_class, 30, 1).labels, found.labels)
    again = data.some(sorted_by_class._replace(labels=None), 99)
    assert len(again.images) == 60
    assert again.labels is None


def test_digits_are_1797_images_in_the_unit_range():
    images = data.load("digits").images
    assert (images.shape, images.dtype) == ((1797, 8, 8, 1), np.float32)
    assert (images.min(), images.max()) == (-1.0, 1.0)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data at .*nowhere.*'mixture', an .npz"):
        data.load(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"readme.txt, expected train-images\* or"):
        data.load(tmp_path)


@pytest.mark.parametrize("raw", [b"\x01\x02\x08\x03", struct.pack(">HBB", 0, 0x0D, 1), b"", b"\0"])
def test_a_file_that_is_not_idx_is_refused(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(ValueError, match=r"got magic .*, expected an IDX file of unsigned bytes"):
        data.read_idx(tmp_path / "x")


def test_a_truncated_idx_file_is_refused(tmp_path):
    write_idx(tmp_path / "x", IMAGES)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"23 bytes of pixels.*\(2, 3, 4\)"):
        data.read_idx(tmp_path / "x")


def test_pixels_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="float64 pixels, expected uint8"):
        data.to_unit(np.zeros((1, 2, 2)))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_data_that_are_cut_short_or_nonsense_are_one_sentence_with_their_name(tmp_path):
    from PIL import Image

    write_idx(tmp_path / "x.gz", IMAGES)
    np.savez_compressed(tmp_path / "x.npz", images=np.random.default_rng(0).bytes(9), a=IMAGES)
    (tmp_path / "folder").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "folder" / "x.png")
    for path in (tmp_path / "x.gz", tmp_path / "x.npz", tmp_path / "folder" / "x.png"):
        cut(path)
        for _ in range(2):  # cut short, then nonsense
            where = path.parent if path.suffix == ".png" else path
            with pytest.raises(ValueError, match=r"got a damaged file .* fetch it again") as error:
                data.load(where)
            assert path.name in str(error.value)
            path.write_bytes(b"nonsense" * 9)
    np.save(tmp_path / "b.npy", IMAGES)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"b\.npz: got a damaged file"):
        data.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "labels",
    [np.array([0, 2**31], np.int64), np.array([0, 2**32 + 1], np.uint64), np.array([0, -1])],
)
def test_labels_that_int32_cannot_hold_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
    with pytest.raises(ValueError, match=r"expected one label in 0 \.\.\. 2147483646 for each"):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(), (24,), (6, 4), (0, 3, 4), (2, 0, 4)])
def test_what_are_no_images_is_refused(tmp_path, shape):
    write_idx(tmp_path / "x-images-idx3", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"of one axis at least|got images of shape"):
        data.load(tmp_path / "x-images-idx3")
