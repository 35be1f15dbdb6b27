"""Single files: numbers come out as they are stored, and whatever is wrong is said with the path."""

from __future__ import annotations

import logging
import struct
import tokenize
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from medusa_cl.data.files import ids_of, image_size, read_image, read_map, read_mat, reading, splits_of
from medusa_cl.data.sources import sniff
from medusa_cl.errors import ConfigError, DataError

GREY, PALETTE = 0, 3


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path: Path, numbers: np.ndarray, bits: int, colours: int = GREY) -> None:
    """Write a PNG of 1, 2 or 4 bits byte by byte."""
    height, width = numbers.shape
    places = (numbers[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(0, 3 * 2**bits))) if colours == PALETTE else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + data + chunk(b"IEND", b""))


@pytest.mark.parametrize("colours", [GREY, PALETTE])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_read_as_the_numbers_stored(tmp_path: Path, bits: int, colours: int) -> None:
    numbers = np.arange(5 * 9).reshape(5, 9) % 2**bits
    write_png(tmp_path / "a.png", numbers, bits, colours)
    found = read_map(tmp_path / "a.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, numbers)
    if colours == GREY:
        np.testing.assert_array_equal(read_map(tmp_path / "a.png", spread=True), numbers * 255 // (2**bits - 1))


def test_eight_and_sixteen_bits_are_left_alone(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        stored = np.array([[0, 1, 85, np.iinfo(dtype).max]], dtype)
        Image.fromarray(stored).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_map(tmp_path / "a.png"), stored)


@pytest.mark.parametrize("error", [ZeroDivisionError(), tokenize.TokenError("x"), UnboundLocalError("y"), OSError("z")])
def test_whatever_a_reader_raises_names_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path} cannot be read: .*on_bad_sample=skip"), reading(tmp_path):
        raise error
    with pytest.raises(ConfigError, match=r"^own$"), reading(tmp_path):
        raise ConfigError("own")


def test_a_damaged_header_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 4)))
    path.write_bytes(path.read_bytes().replace(b"(4, 4)", b"(4, 4("))
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        read_map(path)


def test_a_damaged_tiff_is_not_logged_besides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.zeros((20, 20), np.float32))
    path.write_bytes(path.read_bytes()[:300])
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=f"{path} cannot be read"):
        read_map(path)
    assert not caplog.records
    logging.getLogger("tifffile").error("heard again")
    assert caplog.messages == ["heard again"]


def test_a_large_picture_is_read_and_a_huge_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((30, 40), 1234, np.uint16)).save(path)
    Image.fromarray(np.full((30, 40, 3), 9, np.uint8)).save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (30, 40) and (read_map(path) == 1234).all()
        assert (read_image(tmp_path / "b.png") == 9).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for call in (image_size, read_map, read_image):
        with pytest.raises(DataError, match=f"{path} cannot be read: .*1200 pixels"):
            call(path)


def test_split_files_have_ids_and_perhaps_a_mark_at_their_start(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbfa 1\r\n\r\n b 2\r\n")
    assert ids_of(path) == ["a", "b"] and ids_of(path, blanks=True) == ["a 1", "b 2"]


def test_an_image_belongs_to_one_split(tmp_path: Path) -> None:
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "val.txt"}
    lists["train"].write_text("a\nb")
    lists["test"].write_text("c\nd")
    assert splits_of(lists) == {"train": ("a", "b"), "test": ("c", "d")}
    lists["test"].write_text("c\nb")
    with pytest.raises(DataError, match=rf"{lists['test']} lists b, which train\.txt lists too"):
        splits_of(lists)


def test_only_samples_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"x": np.ones(3)})
    path.write_bytes(path.read_bytes()[:150])
    for sample in (True, False):
        with pytest.raises(DataError, match=f"{path} cannot be read") as caught:
            read_mat(path, "x", sample=sample)
        assert ("on_bad_sample" in str(caught.value)) == sample
    (tmp_path / "train.txt").write_bytes(b"\xff")
    for name in ("train.txt", "none.txt"):
        with pytest.raises(DataError, match=name) as caught:
            ids_of(tmp_path / name)
        assert "on_bad_sample" not in str(caught.value) and "split file" not in str(caught.value)


def test_of_two_packs_side_by_side_one_is_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "NYUD_MT" / "gt_sets").mkdir(parents=True)
    assert sniff(tmp_path) == sniff(tmp_path / "NYUD_MT") == "nyud_mt"
    (tmp_path / "PASCAL_MT" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"holds PASCAL_MT and NYUD_MT\. Name one: path={tmp_path}/PASCAL_MT"):
        sniff(tmp_path)
    assert sniff(tmp_path / "PASCAL_MT") == "pascal_mt"
    (tmp_path / "NYUD_MT" / "PASCAL_MT").mkdir()
    assert sniff(tmp_path / "NYUD_MT") == "nyud_mt"


def test_a_path_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(DataError, match=rf"{tmp_path}/tasks\.yaml cannot be looked into: Permission denied"):
        sniff(tmp_path)
