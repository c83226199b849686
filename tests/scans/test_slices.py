"""Slice folders: order, foreign files, damaged and odd slices."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_volume, write_slices
from PIL import Image

from cov3d import Preprocessing, preprocess, read
from cov3d.config import Reading
from cov3d.errors import ScanError


def test_slices_come_in_integer_order_with_gaps(tmp_path: Path):
    volume = np.stack([np.full((16, 16), k, np.uint8) for k in (1, 2, 10, 120)])
    folder = write_slices(tmp_path / "scan", volume, [1, 2, 10, 1201])
    scan = read(folder)
    assert [int(pixels[0, 0]) for pixels in scan.slices] == [1, 2, 10, 120]
    assert "1197 slice numbers missing" in scan.remarks[0]


def test_foreign_files_are_not_slices(tmp_path: Path):
    clean = write_slices(tmp_path / "clean", smooth_volume())
    littered = Path(shutil.copytree(clean, tmp_path / "littered"))
    for name in (
        "._1.jpg",
        "Thumbs.db",
        ".DS_Store",
        "1 (1).jpg",
        "notes.txt",
        "cache.pt",
        "²…jpg",
        "-1.png",
        "1" * 12 + ".png",
    ):
        (littered / name).write_bytes(b"not a slice")
    settings = Preprocessing(width=32)
    np.testing.assert_array_equal(preprocess(read(littered), settings), preprocess(read(clean), settings))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_every_way_to_code_grey_gives_the_same_voxels(tmp_path: Path, mode: str):
    volume = smooth_volume(slices=4)
    scan = read(write_slices(tmp_path / mode, volume, mode=mode))
    expected = volume if mode != "P" else read(write_slices(tmp_path / "L", volume)).voxels
    np.testing.assert_allclose(scan.voxels, expected, atol=0 if mode != "P" else 4)


def test_rgb_jpeg_decodes_to_its_grey_as_pillow_does_in_full(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=5), suffix=".jpg", mode="RGB")
    expected = [np.asarray(Image.open(folder / f"{k}.jpg").convert("L")) for k in range(5)]
    np.testing.assert_array_equal(read(folder).voxels, expected)


def test_one_number_twice_fails(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=3))
    shutil.copy(folder / "1.png", folder / "0001.png")
    with pytest.raises(ScanError, match=r"slice number 1 stands twice: 0001\.png, 1\.png"):
        read(folder)


def test_slices_of_another_size_are_left_out_and_named(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=20))
    Image.new("L", (30, 40)).save(folder / "7.png")
    scan = read(folder)
    assert len(scan.slices) == 19
    assert scan.remarks == ("1 of 20 slices left out: not 48×48 as the others (7.png)",)


DAMAGE = {
    "zero bytes": (b"", "is empty"),
    "zeros": (bytes(300), "holds only zeros"),
    "text": (b"patient is well", "not what its name says"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not what its name says"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_slice_is_left_out_and_named(tmp_path: Path, damage: str):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=20), suffix=".jpg")
    content, cause = DAMAGE[damage]
    (folder / "7.jpg").write_bytes(content)
    scan = read(folder)
    assert len(scan.slices) == 19
    assert "1 of 20 slices unreadable and left out (7.jpg" in scan.remarks[0]
    assert cause in scan.remarks[0]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_truncated_slice_is_left_out_and_the_others_keep_their_places(tmp_path: Path, share: float):
    volume = smooth_volume(slices=20)
    folder = write_slices(tmp_path / "scan", volume, suffix=".jpg")
    whole = preprocess(read(folder), Preprocessing(width=32, depth=20))
    data = (folder / "7.jpg").read_bytes()
    (folder / "7.jpg").write_bytes(data[: int(share * len(data)) - 2])
    without = preprocess(read(folder), Preprocessing(width=32, depth=20))
    # The spline bridges the gap where it is, so that no other slice moves.
    np.testing.assert_allclose(without.astype(int), whole, atol=6)
    assert len(read(folder).voxels) == 19


def test_more_than_a_tenth_unreadable_fails_the_scan(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=20), suffix=".jpg")
    for name in ("3.jpg", "4.jpg"):
        (folder / name).write_bytes(b"")
    assert len(read(folder).slices) == 18
    (folder / "5.jpg").write_bytes((folder / "6.jpg").read_bytes()[:-40])  # found out only when it is decoded
    with pytest.raises(ScanError, match="3 of 20 slices cannot be read"):
        preprocess(read(folder), Preprocessing(width=32))


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "1"])
def test_pixels_without_eight_bit_grey_are_refused(tmp_path: Path, mode: str):
    folder = tmp_path / "scan"
    folder.mkdir()
    suffix = ".jpg" if mode == "CMYK" else ".png"
    for k in range(3):
        Image.new(mode, (16, 16)).save(folder / f"{k}{suffix}")
    with pytest.raises(ScanError, match=f"pixels of kind {mode}"):
        preprocess(read(folder), Preprocessing(width=16))


def test_a_header_that_promises_too_much_is_refused_before_decoding(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=3))
    Image.new("L", (8000, 8000)).save(folder / "1.png")
    with pytest.raises(ScanError, match="8000×8000"):
        read(folder)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(ScanError, match="no scan found"):
        read(tmp_path)


def test_a_pipe_does_not_hang(tmp_path: Path):
    import os

    folder = write_slices(tmp_path / "scan", smooth_volume(slices=20))
    (folder / "7.png").unlink()
    os.mkfifo(folder / "7.png")
    assert "not an ordinary file" in read(folder).remarks[0]


def test_exif_orientation_is_ignored(tmp_path: Path):
    volume = smooth_volume(slices=3)[:, :, :40]
    folder = write_slices(tmp_path / "scan", volume, suffix=".jpg")
    for k in range(3):
        with Image.open(folder / f"{k}.jpg") as image:
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(folder / f"{k}.jpg", exif=exif, quality="keep")
    as_stored = [np.asarray(Image.open(folder / f"{k}.jpg")) for k in range(3)]
    np.testing.assert_array_equal(read(folder).voxels, as_stored)
    assert read(folder).remarks == ("EXIF says that slices are turned; read as they are stored",)


STRICT = Reading(strict=True)


def test_a_strict_reading_refuses_what_is_else_left_out(tmp_path: Path):
    def littered(name: str) -> Path:
        return write_slices(tmp_path / name, smooth_volume(slices=20), suffix=".jpg")

    assert read(littered("clean"), STRICT).remarks == ()
    (littered("unreadable") / "7.jpg").write_bytes(b"")
    (littered("missing") / "7.jpg").unlink()
    Image.new("L", (30, 40)).save(littered("odd") / "7.jpg")
    cut = littered("cut") / "7.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    for name, cause in (
        ("unreadable", "empty"),
        ("missing", "1 slice numbers"),
        ("odd", "not 48×48"),
        ("cut", "trunc"),
    ):
        preprocess(read(tmp_path / name), Preprocessing(width=16))
        with pytest.raises(ScanError, match=f"{cause}.*--strict"):
            preprocess(read(tmp_path / name, STRICT), Preprocessing(width=16))


def test_more_than_a_tenth_of_another_size_fails_the_scan(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", smooth_volume(slices=20))
    for k in range(3):
        Image.new("L", (30, 40)).save(folder / f"{k}.png")
    with pytest.raises(ScanError, match=r"3 of 20 slices.*not 48×48"):
        read(folder)


def test_colour_in_a_slice_is_said(tmp_path: Path):
    volume = smooth_volume(slices=9)
    folder = write_slices(tmp_path / "scan", volume, suffix=".jpg", mode="RGB")
    assert read(folder).remarks == ()
    painted = np.repeat(volume[4][..., None], 3, 2)
    painted[10:20, 10:20] = 255, 0, 0
    Image.fromarray(painted).save(folder / "4.jpg", quality=95)
    assert "slices are not grey: their channels differ by up to 2" in read(folder).remarks[0]
    with pytest.raises(ScanError, match="not grey"):
        read(folder, STRICT)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_is_said(tmp_path: Path, mode: str):
    assert "alpha" in read(write_slices(tmp_path / "scan", smooth_volume(slices=3), mode=mode)).remarks[0]


def test_scans_within_a_scan_are_said(tmp_path: Path):
    outer = write_slices(tmp_path / "a", smooth_volume(slices=3))
    write_slices(outer / "b", smooth_volume(slices=3))
    assert read(outer).remarks == ("its sub-folders hold other scans (b)",)


def test_eight_bits_are_not_taken_for_hu(tmp_path: Path):
    with pytest.raises(ScanError, match="grey levels, not HU"):
        read(write_slices(tmp_path / "a", smooth_volume(slices=3)), Reading(range="hu"))


def test_a_drive_that_hiccups_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_slices(tmp_path / "a", smooth_volume(slices=3))
    real, failures = Image.open, [errno.EIO, errno.ESTALE]

    def open_(*values, **named):
        if failures:
            raise OSError(failures.pop(), "hiccup")
        return real(*values, **named)

    monkeypatch.setattr("cov3d.scans.boundary.PAUSES", (0, 0, 0))
    monkeypatch.setattr(Image, "open", open_)
    assert read(folder).remarks == ()
    assert not failures
