"""DICOM in a zip: its members are read in memory, and what it may promise is bounded before anything is inflated."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from cov3d.errors import ScanError
from cov3d.scans.boundary import look_of
from cov3d.scans.dicom_files import HEAD, LARGEST_FILE, Part, dicom_among, may_be_dicom

MOST_MEMBERS = 20_000
LARGEST_ARCHIVE = 8 * 2**30  # bytes, unpacked


def members(path: Path) -> list[Part]:
    """The DICOM files in a zip.

    Raises:
        ScanError: it is damaged, encrypted, promises too much, or holds no DICOM.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            head = file.read(64)
        cut = "is a damaged or truncated zip; copy it again"
        raise ScanError(path, cut if head.startswith(b"PK") else look_of(head)) from None
    listed = [member for member in archive.infolist() if not member.is_dir()]
    _check_promise(path, listed)
    candidates = [member for member in listed if _may_be_dicom(member)]
    found = dicom_among([(Path(member.filename), _head(archive, member)) for member in candidates])
    if not any(found):
        raise ScanError(path, "holds no DICOM files; unpack it if it holds slices or volumes")
    return [_part(archive, member) for member, is_meant in zip(candidates, found, strict=True) if is_meant]


def _part(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Part:
    return Part(Path(member.filename).name, lambda: cast(BinaryIO, archive.open(member)))


def _check_promise(path: Path, listed: list[zipfile.ZipInfo]) -> None:
    size = sum(member.file_size for member in listed)
    largest = max((member.file_size for member in listed), default=0)
    if len(listed) > MOST_MEMBERS or size > LARGEST_ARCHIVE or largest > LARGEST_FILE:
        raise ScanError(
            path,
            f"promises {len(listed)} files of {size / 2**30:.1f} GiB, more than the {MOST_MEMBERS} files and "
            f"{LARGEST_ARCHIVE >> 30} GiB that are read from a zip; unpack it first",
        )
    if any(member.flag_bits & 1 for member in listed):
        raise ScanError(path, "is encrypted; unpack it first")


def _may_be_dicom(member: zipfile.ZipInfo) -> bool:
    path = Path(member.filename)
    return "__MACOSX" not in path.parts and may_be_dicom(path.name)


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | None:
    """A member's first bytes; None if it is damaged."""
    try:
        with archive.open(member) as file:
            return file.read(HEAD)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError):
        return None
