"""Faults of files and folders, by section of docs/reference/bad-inputs.md: what other tests of this folder do not show."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from conftest import smooth_volume, write_nifti, write_slices
from PIL import Image, ImageFile

from cov3d import Machine, Preprocessing, console, fill_cache, preprocess, read, read_study
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.forms import write_dicom
from cov3d.locks import locked
from cov3d.scans import boundary, cache, entry
from cov3d.scans.continuity import repeated_slices
from cov3d.scans.entry import entry_job, make_entry
from cov3d.scans.fingerprint import content_fingerprint, stat_fingerprint
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import ask_scans, find_scans
from cov3d.scans.series import with_patients
from cov3d.scans.tensors import make_tensors

SETTINGS = Preprocessing(width=32, depth=20)
VOLUME = smooth_volume(20, 48)
HU = (smooth_volume(12, 20).astype(np.int16) * 6 - 1000).astype(np.int16)


class Late(BaseException):
    """No error that a reader could take for one of its own."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A pipe or a device would block for ever."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture) -> Iterator[None]:
    """No library says anything by itself: what concerns a scan is in its remarks or its error."""
    console.set_quiet(True)
    yield
    console.set_quiet(False)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def slices(folder: Path) -> Path:
    return write_slices(folder, VOLUME, suffix=".jpg")


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


# A: finding scans


@pytest.mark.parametrize("junk", ["Thumbs.db", "desktop.ini", ".DS_Store", "._1.jpg", "__MACOSX/1.jpg", ".git/1.jpg"])
def test_a_folder_of_junk_is_no_scan(tmp_path: Path, junk: str):
    file = tmp_path / "scan" / junk
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\0\5\x16\7junk")
    assert find_scans(tmp_path) == []
    with pytest.raises(ScanError, match=r"no scan found \(looked for folders of 0\.jpg"):
        read(tmp_path / "scan")


NO_NUMBERS = ("²", "１２", "٣", "9" * 250, "-1", "+1", "1 (1)", "0x1", "1e0", "1_0", " 5", "1.0")


def test_names_that_are_no_plain_numbers_are_no_slices(tmp_path: Path):
    folder = slices(tmp_path / "scan")
    expected = preprocess(read(folder), SETTINGS)
    for name in NO_NUMBERS:
        (folder / f"{name}.jpg").write_bytes(b"junk")
    np.testing.assert_array_equal(preprocess(read(folder), SETTINGS), expected)
    assert read(folder, Reading(strict=True)).remarks == ()


def test_a_scan_within_a_scan_is_a_scan_of_its_own(tmp_path: Path):
    outer = slices(tmp_path / "outer")
    inner = slices(outer / "part" / "inner")
    assert find_scans(tmp_path) == [outer, inner]


def test_one_folder_that_cannot_be_a_scan_does_not_hide_the_others(tmp_path: Path):
    for name in ("a", "b"):
        slices(tmp_path / name)
    shutil.copy(tmp_path / "a" / "1.jpg", tmp_path / "a" / "01.jpg")
    assert find_scans(tmp_path) == [tmp_path / "a", tmp_path / "b"]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path.name)
    os.chdir(here)


def linked_pipe(path: Path) -> None:
    os.mkfifo(path.parent.parent / "DOE_JANE")
    path.symlink_to(path.parent.parent / "DOE_JANE")


def linked_folder(path: Path) -> None:
    (path.parent.parent / "DOE_JANE").mkdir()
    path.symlink_to(path.parent.parent / "DOE_JANE")


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (pipe, "is not an ordinary file"),
    "a socket": (bound_socket, "is not an ordinary file"),
    "a folder": (Path.mkdir, "is not an ordinary file|no scan found"),
    "a link to a pipe": (linked_pipe, "is not an ordinary file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "is not an ordinary file"),
    "a link to a folder": (linked_folder, "is not an ordinary file|no scan found"),
    "a link to nothing": (lambda path: path.symlink_to("/DOE_JANE"), "No such file|is not there"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_slice_that_is_no_file_costs_that_slice_and_its_target_is_not_told(tmp_path: Path, kind: str):
    folder = slices(tmp_path / "scan")
    (folder / "7.jpg").unlink()
    make, said = NO_FILES[kind]
    make(folder / "7.jpg")
    (tmp_path / "cache").mkdir()
    made, _ = make_entry(entry_job("scan", folder, tmp_path / "cache", SETTINGS, Reading()))
    assert made["slices"] == 19
    assert re.match(rf"1 of 20 slices unreadable and left out \(7\.jpg .*({said})", made["warnings"][0])
    assert "DOE" not in "".join(path.read_text("latin-1") for path in (tmp_path / "cache").iterdir())
    answer, _ = make_tensors({"path": str(folder), "reading": {}, "settings": [{"width": 32}]})
    assert answer["warnings"] == made["warnings"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm", ".zip"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_a_volume_that_is_no_file_is_an_error(tmp_path: Path, kind: str, suffix: str):
    make, said = NO_FILES[kind]
    path = tmp_path / "study" / f"scan{suffix}"
    path.parent.mkdir()
    make(path)
    find_scans(tmp_path)
    with pytest.raises(ScanError, match=said) as caught:
        read(path)
    assert "DOE" not in str(caught.value)
    with pytest.raises(ScanError):
        make_entry(entry_job("scan", path, tmp_path, SETTINGS, Reading()))


def test_links_to_slices_are_followed_and_their_targets_told_nowhere(tmp_path: Path):
    patient = slices(tmp_path / "DOE_JANE")
    scan = tmp_path / "study" / "scan"
    scan.mkdir(parents=True)
    for file in patient.iterdir():
        (scan / file.name).symlink_to(file)
    filled = fill_cache(read_study(scan.parent).rows, SETTINGS, tmp_path / "cache", Machine(workers=1))
    np.testing.assert_array_equal(filled.load("scan"), preprocess(read(patient), SETTINGS))
    assert not [file for file in filled.folder.iterdir() if b"DOE" in file.read_bytes()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_or_folder_of_somebody_else_is_said_to_be_so(tmp_path: Path):
    folder, volume = slices(tmp_path / "slices"), write_nifti(tmp_path / "scan.nii", HU)
    (folder / "7.jpg").chmod(0)
    volume.chmod(0)
    assert "7.jpg cannot be read: Permission denied" in read(folder).remarks[0]
    with pytest.raises(ScanError, match="permission denied; ask its owner"):
        read(volume)
    folder.chmod(0)
    try:
        assert find_scans(tmp_path) == [volume, folder]
        with pytest.raises(ScanError, match="permission denied; ask its owner"):
            read(folder)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_a_folder_that_may_not_be_looked_into_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b"):
        slices(tmp_path / name)
    real = os.scandir

    def scandir(path):
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_scans(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setattr(Path, "iterdir", scandir)
    with pytest.raises(ScanError, match="permission denied; ask its owner"):
        read(tmp_path / "a")


def test_a_scan_and_a_link_to_it_are_asked_for_once(tmp_path: Path):
    scan = slices(tmp_path / "scan")
    (tmp_path / "link").symlink_to(scan)
    assert ask_scans([scan, tmp_path / "link"]) == [scan]


def test_a_path_too_long_for_any_disk_costs_its_row(tmp_path: Path):
    long = tmp_path / ("x" * 300)
    assert ask_scans([slices(tmp_path / "scan"), long]) == [tmp_path / "scan", long]
    with pytest.raises(ScanError, match="cannot be read: File name too long"):
        read(long)


# A: what passes, and what changes under the reader's hands


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT])
def test_a_drive_that_stays_away_is_asked_four_times(monkeypatch: pytest.MonkeyPatch, number: int):
    pauses: list[float] = []
    monkeypatch.setattr(boundary.time, "sleep", pauses.append)

    def fails():
        raise OSError(number, "away")

    with pytest.raises(OSError, match="away"):
        boundary.patiently(fails)
    assert pauses == list(boundary.PAUSES)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no")])
def test_what_does_not_pass_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, error: OSError):
    monkeypatch.setattr(boundary.time, "sleep", lambda _: pytest.fail("it waits"))

    def fails():
        raise error

    with pytest.raises(type(error)):
        boundary.patiently(fails)


@pytest.mark.parametrize("name", ["slices", "scan.nii"])
@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_drive_that_hiccups_costs_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str):
    path = slices(tmp_path / name) if name == "slices" else write_nifti(tmp_path / name, HU)
    actions = (
        lambda: stat_fingerprint(path),
        lambda: content_fingerprint(path),
        lambda: preprocess(read(path, Reading(strict=True)), SETTINGS).tobytes(),
    )
    expected = [action() for action in actions]
    real, calls = getattr(Path, call), []
    fails = [0, 0]  # which calls

    def hiccup(*values, **named):
        calls.append(values)
        if len(calls) in fails:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(*values, **named)

    monkeypatch.setattr(boundary, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(Path, call, hiccup)
    for first in range(1, 12):
        for action, whole in zip(actions, expected, strict=True):
            fails[:] = len(calls) + first, len(calls) + first + 1
            assert action() == whole
    assert len(calls) > 30


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda file: file.open("ab").write(b"more"),
    "is replaced": lambda file: shutil.copy(file.with_name("2.jpg"), file),
    "vanishes": Path.unlink,
    "gets a neighbour": lambda file: shutil.copy(file, file.with_name("99.jpg")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_that_changes_while_it_is_read_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str):
    folder = slices(tmp_path / "scan")

    def reading(path, how):
        scan = read(path, how)
        CHANGES[change](folder / "7.jpg")
        return scan

    monkeypatch.setattr(entry, "read", reading)
    (tmp_path / "cache").mkdir()
    with pytest.raises(ScanError, match="changed while it was read; run again when it is copied whole"):
        make_entry(entry_job("scan", folder, tmp_path / "cache", SETTINGS, Reading()))
    assert list((tmp_path / "cache").iterdir()) == []


# B: slices

PICTURE = Image.fromarray(VOLUME[7])
JPEG, PNG = encoded(PICTURE, "JPEG", quality=95), encoded(PICTURE, "PNG")
FRAME = JPEG.index(b"\xff\xc0")


def jpeg(process: int = 0xC0, bits: int = 8, sides: bytes = b"") -> bytes:
    """A JPEG whose frame header says something else: its process, bits a pixel, height and width."""
    data = bytearray(JPEG)
    data[FRAME + 1], data[FRAME + 4] = process, bits
    data[FRAME + 5 : FRAME + 5 + len(sides)] = sides
    return bytes(data)


def png_with(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return PNG[:33] + chunk + PNG[33:]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


BOMB = zlib.compress(bytes(200_000_000), 9)  # 200 MB from 200 KB
NO_NAME, OTHER = "is not what its name says", "; export slices as 8-bit grey, or give DICOM"
BROKEN = {
    **{f"JPEG cut at {share:.1%}": (JPEG[: int(share * len(JPEG))], "is truncated") for share in (0.5, 0.9, 0.99)},
    "JPEG cut at once": (JPEG[:2], NO_NAME),
    "JPEG without its end": (JPEG[:-2], "is truncated"),
    **{f"PNG cut at {share:.0%}": (PNG[: int(share * len(PNG))], "is truncated") for share in (0.1, 0.5, 0.9)},
    "PNG with a flipped bit": (flipped(PNG, len(PNG) // 2), "is damaged"),
    "12-bit JPEG": (jpeg(0xC1, 12), f"is a 12-bit JPEG{OTHER}"),
    "lossless JPEG": (jpeg(0xC3), f"is a lossless JPEG{OTHER}"),
    "lossless 16-bit JPEG": (jpeg(0xC3, 16), f"is a lossless JPEG{OTHER}"),
    "JPEG-LS": (jpeg(0xF7), f"is a lossless JPEG{OTHER}"),
    "JPEG of no height": (jpeg(sides=b"\0\0"), NO_NAME),
    "JPEG promising 65535×65535": (jpeg(sides=b"\xff" * 4), "is larger than 4096 pixels a side"),
    "JPEG promising 12000×12000": (jpeg(sides=struct.pack(">HH", 12000, 12000)), "is 12000×12000, larger than 4096"),
    "PNG of 13000×13000": (encoded(Image.new("L", (13000, 13000)), "PNG"), "is 13000×13000, larger than 4096"),
    "PNG with a large text": (png_with(b"zTXt", b"Comment\0\0" + BOMB), "is damaged (ValueError)"),
    "PNG with a large profile": (png_with(b"iCCP", b"x\0\0" + BOMB), "is damaged (ValueError)"),
    **{f"{form} named .jpg": (encoded(PICTURE, form), NO_NAME) for form in ("TIFF", "JPEG2000", "GIF", "BMP", "PPM")},
    "EPS named .jpg": (encoded(PICTURE, "EPS"), NO_NAME),
    "SVG named .jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is a web page or XML"),
    "CMYK": (encoded(PICTURE.convert("CMYK"), "JPEG"), "has pixels of kind CMYK"),
    "16-bit PNG": (encoded(Image.fromarray(VOLUME[7].astype(np.uint16) * 257), "PNG"), "has pixels of kind I;16"),
    "black and white PNG": (encoded(PICTURE.convert("1"), "PNG"), "has pixels of kind 1"),
    "1×1": (encoded(Image.new("L", (1, 1)), "JPEG"), "not 48×48 as the others (7.jpg)"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_slice_that_cannot_be_used_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program is started"))
    content, said = BROKEN[fault]
    folder = slices(tmp_path / "scan")
    (folder / "7.jpg").write_bytes(content)
    tensor, scan = prepare(read(folder), SETTINGS)
    assert len(scan.slices) == 19
    assert (
        f"1 of 20 slices {'left out: ' if '1×1' in fault else 'unreadable and left out (7.jpg '}{said}"
        in scan.remarks[0]
    )
    assert np.abs(tensor.astype(int) - preprocess(read(slices(tmp_path / "whole")), SETTINGS)).max() <= 6  # bridged
    with pytest.raises(ScanError, match="--strict refuses that"):
        preprocess(read(folder, Reading(strict=True)), SETTINGS)


WHOLE = {
    "progressive": encoded(PICTURE, "JPEG", progressive=True, quality=95),
    "with restart marks": encoded(PICTURE, "JPEG", restart_marker_blocks=2, quality=95),
    "with tables of its own": encoded(PICTURE, "JPEG", optimize=True, quality=95),
    "with bytes after its end": JPEG + b"<script>alert(1)</script>" + bytes(5000),
    "a PNG named .jpg": PNG,
    "a PNG with bytes after its end": PNG + b"PK\3\4" + bytes(5000),
    "a PNG without its end mark, its pixels whole": PNG[:-12],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_every_other_way_to_store_a_slice_is_read(tmp_path: Path, kind: str):
    folder = slices(tmp_path / "scan")
    (folder / "7.jpg").write_bytes(WHOLE[kind])
    scan = read(folder, Reading(strict=True))
    np.testing.assert_allclose(scan.slices[7].astype(int), VOLUME[7], atol=12 if "PNG" not in kind else 0)
    assert prepare(scan, SETTINGS)[1].remarks == ()


@pytest.mark.parametrize("side", [(511, 513), (1, 1), (2, 300)])
def test_slices_of_any_size_are_read(tmp_path: Path, side: tuple[int, int]):
    volume = np.random.default_rng(0).integers(0, 256, (5, *side), dtype=np.uint8)
    assert preprocess(read(write_slices(tmp_path / "scan", volume)), SETTINGS).shape == (1, 20, 32, 32)


def test_truncated_pictures_are_never_filled_with_grey():
    import cov3d.training.train  # noqa: F401  # fastai too leaves it as it is

    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_hole_that_no_decoder_notices_is_named(tmp_path: Path):
    folder = slices(tmp_path / "scan")
    middle = len(JPEG) // 2
    (folder / "7.jpg").write_bytes(JPEG[:middle] + bytes(200) + JPEG[middle + 200 :])
    _, scan = prepare(read(folder), SETTINGS)
    assert len(scan.slices) == 20
    assert scan.remarks == ("1 slice out of keeping with the neighbours (from the head: 7); damaged?",)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_scan_of_one_level_is_blank(tmp_path: Path, level: int):
    _, scan = prepare(read(write_slices(tmp_path / "scan", np.full((10, 32, 32), level, np.uint8))), SETTINGS)
    assert scan.remarks == ("blank: the scan shows no structure",)


@pytest.mark.parametrize(
    "order, said",
    [
        ([0] * 20, "19 slices equal to the one before (from the head: 1, 2, 3, 4, 5, and 14 more)"),
        ([*range(9), 8, *range(9, 19)], "1 slice equal to the one before (from the head: 9)"),
    ],
    ids=["all", "one"],
)
def test_slices_that_repeat_are_named(tmp_path: Path, order: list[int], said: str):
    _, scan = prepare(read(write_slices(tmp_path / "scan", VOLUME[order])), SETTINGS)
    assert scan.remarks == (f"{said}; copied twice?",)


def test_slices_that_show_nothing_may_be_alike(tmp_path: Path):
    volume = VOLUME.copy()
    volume[:3] = volume[17:] = 0
    assert prepare(read(write_slices(tmp_path / "scan", volume)), SETTINGS)[1].remarks == ()
    assert list(repeated_slices(np.array([[0, 9.0], [0, 9.0], [0, 9.5]]), 4)) == [1]


@pytest.mark.parametrize("count", [2, 3, 4096, 4097])
def test_the_number_of_slices_has_an_upper_bound(tmp_path: Path, count: int):
    folder = write_slices(tmp_path / "scan", smooth_volume(1, 16))
    for number in range(1, count):
        os.link(folder / "0.png", folder / f"{number}.png")
    if count > 4096:
        with pytest.raises(ScanError, match="4097 slices are more than 4096; is this one scan"):
            read(folder)
    else:
        assert len(read(folder).slices) == count


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path: Path):
    """1201 slices of 400×400 are 192 MB as bytes, and 769 as float32."""
    folder = write_slices(tmp_path / "scan", smooth_volume(1, 400))
    for number in range(1, 1201):
        os.link(folder / "0.png", folder / f"{number}.png")
    script = (
        "import resource, sys\n"
        "from cov3d import Preprocessing, preprocess, read\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "tensor = preprocess(read(sys.argv[1]), Preprocessing(width=64))\n"
        "print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 60  # MB


# C: NIfTI


def header_of(data: bytes, **values: object) -> bytes:
    """A NIfTI with other values in its header, as no library writes them."""
    header = nib.Nifti1Header(data[:348], check=False)
    for name, value in values.items():
        header[name] = value
    return header.binaryblock + data[348:]


PLAIN = nib.Nifti1Image(HU, np.diag([0.8, 0.8, 2, 1])).to_bytes()
PACKED = gzip.compress(PLAIN, mtime=0)
CHECKSUM = "its checksum is wrong; copy it again"
NO_VOLUME = {
    "half": ("scan.nii", PLAIN[: len(PLAIN) // 2], "is truncated: 4976 of 9952 bytes"),
    "packed, without its end": ("scan.nii.gz", PACKED[:-8], "is truncated"),
    "packed, with another checksum": ("scan.nii.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], CHECKSUM),
    "packed, with another length": ("scan.nii.gz", PACKED[:-4] + bytes(4), CHECKSUM),
    "packed, with bytes after its end": ("scan.nii.gz", PACKED + b"junk", CHECKSUM),
    "not packed, but named so": ("scan.nii.gz", PLAIN, NO_NAME),
    "empty, packed": ("scan.nii.gz", b"", "is empty"),
    "a web page, packed": ("scan.nii.gz", b"<html>", "is a web page"),
    "a packed nothing": ("scan.nii.gz", gzip.compress(b""), "is empty"),
    "packed, and far more than promised": ("scan.nii.gz", gzip.compress(PLAIN + bytes(2**25)), "unpacks to far more"),
    "no dimensions": ("scan.nii", header_of(PLAIN, dim=[0] * 8), "expected a volume of three dimensions"),
    "two dimensions": ("scan.nii", header_of(PLAIN, dim=[2, 20, 20, 1, 1, 1, 1, 1]), r"three dimensions, got \(20, 20\)"),
    "five dimensions": ("scan.nii", header_of(PLAIN, dim=[5, 5, 20, 12, 1, 2, 1, 1]), "expected a volume of three"),
    "eight dimensions": ("scan.nii", header_of(PLAIN, dim=[8, 20, 20, 12, 1, 1, 1, 1]), "is damaged"),
    "voxels before the file": ("scan.nii", header_of(PLAIN, vox_offset=-1), "is damaged"),
    "voxels in the header": ("scan.nii", header_of(PLAIN, vox_offset=100), "is damaged"),
    "complex numbers": ("scan.nii", header_of(PLAIN, datatype=32, bitpix=64), "its voxels are complex64, not HU"),
    "a singular affine": ("scan.nii", header_of(PLAIN, srow_x=[0] * 4), "its affine is singular"),
    "an affine of NaN": ("scan.nii", header_of(PLAIN, srow_z=[np.nan] * 4), "its affine is singular"),
    "a quaternion that cannot be": ("scan.nii", header_of(PLAIN, sform_code=0, qform_code=1, quatern_b=5), "is damaged"),
    **{
        f"pixdim {mm} and code {code}": (
            "scan.nii",
            header_of(PLAIN, pixdim=[1, mm, 0.8, 2, 1, 1, 1, 1], sform_code=0, qform_code=code),
            "is no spacing in mm" if not mm > 0 else "singular" if mm > 1e6 else "mm is not plausible",
        )
        for mm in (0, -0.8, 1e-6, 1e3, np.inf, np.nan)
        for code in (0, 1)
    },
}  # fmt: skip


@pytest.mark.parametrize("fault", NO_VOLUME)
def test_a_nifti_that_cannot_be_a_scan_is_refused_in_words(tmp_path: Path, fault: str):
    name, content, said = NO_VOLUME[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=said):
        read(tmp_path / name)


NO_SCALE = "are no scale, and ignored"
DISAGREE = "and affine [0.8, 0.8, 2.0] mm disagree; used affine"
SAID = {
    **{
        f"slope {slope} and intercept {inter}": (header_of(PLAIN, scl_slope=slope, scl_inter=inter), NO_SCALE)
        for slope, inter in ((0, -1024), (np.nan, -1024), (np.inf, 0), (1, np.inf))
    },
    "qform of other sizes": (
        header_of(PLAIN, pixdim=[1, 5, 5, 5, 1, 1, 1, 1], qform_code=1),
        f"pixdim [5.0, 5.0, 5.0] mm {DISAGREE}",
    ),
    "pixdim 1000 beside an affine": (
        header_of(PLAIN, pixdim=[1, 1000, 0.8, 2, 1, 1, 1, 1]),
        f"pixdim [1000.0, 0.8, 2.0] mm {DISAGREE}",
    ),
    "coronal slices": (
        nib.Nifti1Image(HU, np.diag([0.8, 5, 0.8, 1])).to_bytes(),
        "axial pixels of 5×0.8 mm: a coronal stack?",
    ),
    "sagittal slices": (
        nib.Nifti1Image(HU, np.diag([5, 0.8, 0.8, 1])).to_bytes(),
        "axial pixels of 0.8×5 mm: a sagittal stack?",
    ),
}


@pytest.mark.parametrize("oddity", SAID)
def test_an_odd_nifti_is_read_and_the_oddity_said(tmp_path: Path, oddity: str):
    content, said = SAID[oddity]
    (tmp_path / "scan.nii").write_bytes(content)
    scan = read(tmp_path / "scan.nii")
    assert [remark for remark in scan.remarks if said in remark] == list(scan.remarks) != []
    np.testing.assert_array_equal(np.sort(scan.voxels, None), np.sort(HU, None))


UNSAID = {
    "NIfTI-2": nib.Nifti2Image(HU, np.diag([0.8, 0.8, 2, 1])).to_bytes(),
    "slope 0, which is none": header_of(PLAIN, scl_slope=0, scl_inter=0),
    "slope NaN, which is none": header_of(PLAIN, scl_slope=np.nan, scl_inter=np.nan),
    "four dimensions, the last of one": header_of(PLAIN, dim=[4, 20, 20, 12, 1, 1, 1, 1]),
    "another bitpix": header_of(PLAIN, bitpix=99),
}
UNSAID_SUFFIX = {"packed with zeros after its end": gzip.compress(PLAIN) + bytes(99)}


@pytest.mark.parametrize("kind", [*UNSAID, *UNSAID_SUFFIX])
def test_an_unusual_nifti_is_read(tmp_path: Path, kind: str):
    path = tmp_path / ("scan.nii.gz" if kind in UNSAID_SUFFIX else "scan.nii")
    path.write_bytes({**UNSAID, **UNSAID_SUFFIX}[kind])
    scan = read(path)
    assert (scan.remarks, scan.spacing) == ((), pytest.approx((2.0, 0.8, 0.8)))
    np.testing.assert_array_equal(np.sort(scan.voxels, None), np.sort(HU, None))


def test_large_stored_numbers_do_not_overflow(tmp_path: Path):
    stored = (HU.astype(np.int64) * 1000 + 2**31).astype(np.uint32)
    nib.save(nib.Nifti1Image(stored, np.diag([0.8, 0.8, 2, 1])), tmp_path / "scan.nii")
    voxels = read(tmp_path / "scan.nii").voxels
    np.testing.assert_array_equal(np.sort(voxels, None), np.sort(stored, None).astype(np.float32))


# D: DICOM


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_dicom(tmp_path / "series", HU.clip(-1000, 500), (2.0, 1.0, 1.0), seed=0)


def deep(data: bytes) -> bytes:
    """5000 sequences, each in the one before."""
    end = 132 + 12 + int.from_bytes(data[140:144], "little")  # of the file's meta header
    level = b"\x08\0\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    return data[:end] + 5000 * level + data[end:]


def endless(data: bytes) -> bytes:
    """A text of 2 GB in a file of a few kilobytes."""
    place = data.index(b"\x10\0\x20\0LO")  # PatientID
    return data[:place] + b"\x10\0\x20\0UT\0\0\xff\xff\xff\x7f" + data[place + 8 :]


def odd_types(data: bytes) -> bytes:
    """Value representations that there are none of, in the meta header and below."""
    return data.replace(b"UI", b"ZZ").replace(b"DS", b"\0\0")


@pytest.mark.parametrize("craft", [deep, endless, odd_types])
def test_a_crafted_dicom_header_costs_its_file(series: Path, craft: Callable[[bytes], bytes]):
    file = max(series.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))
    data = file.read_bytes()
    file.write_bytes(craft(data))
    assert file.read_bytes() != data
    begin = time.monotonic()
    scan = read(series)
    assert [file.name in remark for remark in scan.remarks if "unreadable" in remark] == [True]
    np.testing.assert_array_equal(scan.voxels, HU[1:].clip(-1000, 500))
    assert time.monotonic() - begin < 10


def test_a_file_that_promises_frames_without_end_is_set_aside(series: Path):
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.Rows = dataset.Columns = 4096
        dataset.NumberOfFrames = 100_000
        dataset.save_as(file)
    with pytest.raises(ScanError, match="promising 100000 frames of 4096×4096 pixels"):
        read(series)


def test_no_library_quotes_a_dicom_header(series: Path):
    """pydicom warns of values that the standard does not allow, and shows them."""
    for file in series.iterdir():
        file.write_bytes(file.read_bytes().replace(b"2.25.", b"DOE^J").replace(b"DRAWN-", b"DOE^JN"))
    shutil.copytree(series, series.with_name("second"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read(series).voxels.shape == HU.shape
        assert find_scans(series.parent) == [series.with_name("second"), series]
        with_patients(read_study(series.parent))
    assert [str(warning.message) for warning in told] == []


def test_no_odd_header_stops_the_search_for_scans_and_patients(series: Path):
    root = series.parent
    for file in series.iterdir():
        file.write_bytes(file.read_bytes().replace(b"2.25.", b"2\\25\\").replace(b"DRAWN-", b"A\\B\0\0C"))
    shutil.copytree(series, root / "second")
    (root / "broken.zip").write_bytes(b"PK\3\4 and no more")
    write_slices(root / "slices", VOLUME)
    (root / "table.csv").write_text("scan,presence\nseries,1\nsecond,1\nbroken.zip,0\nslices,0\n")
    assert root / "slices" in find_scans(root)
    study = with_patients(read_study(root / "table.csv"))
    assert {row.scan for row in study.rows} == {"series", "second", "broken.zip", "slices"}


# G: the cache

ONE = Machine(workers=1)


def fill(tmp_path: Path) -> cache.Cache:
    return fill_cache(read_study(tmp_path / "study").rows, SETTINGS, tmp_path / "cache", ONE)


@pytest.fixture
def filled(tmp_path: Path) -> cache.Cache:
    """The cache of one scan."""
    slices(tmp_path / "study" / "scan")
    return fill(tmp_path)


def tensor_file(filled: cache.Cache) -> Path:
    return filled.folder / filled.entries["scan"]["file"]


def test_another_version_of_the_cache_has_a_folder_of_its_own(
    filled: cache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = {file: file.read_bytes() for file in filled.folder.iterdir()}
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    assert fill(tmp_path).folder != filled.folder
    assert {file: file.read_bytes() for file in filled.folder.iterdir()} == before


def deflated(data: bytes) -> bytes:
    """The same archive, packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def saved(tensor: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


FORGED = {
    "packed": deflated(saved(torch.zeros(1, 20, 32, 32, dtype=torch.uint8))),
    "of another type": saved(torch.zeros(1, 20, 32, 32, dtype=torch.float64)),
    "of another shape": saved(torch.zeros(1, 20, 32, 31, dtype=torch.uint8)),
    "no tensor": saved({"a": 1}),
    "no archive": b"junk",
    "nothing": b"",
}


@pytest.mark.parametrize("content", FORGED)
def test_a_file_that_is_no_tensor_of_this_cache_is_made_again_whatever_its_entry_says(
    filled: cache.Cache, content: str
):
    whole = filled.load("scan")
    tensor_file(filled).write_bytes(FORGED[content])
    forged = {"sha256": hashlib.sha256(FORGED[content]).hexdigest(), "bytes": len(FORGED[content])}
    filled.entries["scan"].update(forged)
    np.testing.assert_array_equal(replace(filled, verified=set()).load("scan"), whole)


ENTRIES: dict[str, Callable[[dict], object]] = {
    "cut": lambda content: json.dumps(content)[:50],
    "empty": lambda content: "",
    "of another kind": lambda content: "[1, 2]",
    "deep": lambda content: "[" * 100_000,
    "of another version": lambda content: json.dumps({k: v for k, v in content.items() if k != "content"}),
    "of a later version": lambda content: json.dumps({**content, "new": 1}),
    "with a size in words": lambda content: json.dumps({**content, "bytes": "many"}),
    "for a file elsewhere": lambda content: json.dumps({**content, "file": "../../study/scan/7.jpg"}),
    "for another scan's file": lambda content: json.dumps({**content, "file": "other.pt"}),
}


@pytest.mark.parametrize("fault", ENTRIES)
def test_an_entry_that_is_none_is_made_again(filled: cache.Cache, tmp_path: Path, fault: str):
    file = tensor_file(filled).with_suffix(".json")
    whole = json.loads(file.read_text())
    file.write_text(str(ENTRIES[fault](whole)))
    assert fill(tmp_path).made == 1
    assert {**json.loads(file.read_text()), "seconds": 0} == {**whole, "seconds": 0}
    assert fill(tmp_path).made == 0


def test_no_file_of_the_cache_is_written_in_place(filled: cache.Cache, tmp_path: Path):
    """Who has mapped a file that is rewritten dies of SIGBUS."""
    with tensor_file(filled).open("rb") as file:
        before = file.read()
        slices(tmp_path / "study" / "scan")
        write_slices(tmp_path / "study" / "scan", 255 - VOLUME, suffix=".jpg")
        assert fill(tmp_path).made == 1
        file.seek(0)
        assert file.read() == before != tensor_file(filled).read_bytes()


def test_a_cached_tensor_takes_its_own_room_only(filled: cache.Cache):
    assert 20 * 32 * 32 < tensor_file(filled).stat().st_size < 20 * 32 * 32 + 4096


def test_leftovers_of_a_killed_run_are_swept_at_once_and_what_is_being_written_stays(
    filled: cache.Cache, tmp_path: Path
):
    left, written = filled.folder / ".tmp-cov3d-left", filled.folder / ".tmp-cov3d-written"
    for file in (left, written):
        file.write_bytes(b"half")
    with locked(written):
        assert fill(tmp_path).made == 0
        assert (left.exists(), written.exists()) == (False, True)
    assert written.name not in (filled.folder / "manifest.csv").read_text()
