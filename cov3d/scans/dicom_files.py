"""Which files are DICOM: in a folder, below it, or in a zip that is read in memory."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cov3d.errors import ScanError
from cov3d.scans.boundary import look_of, patiently

SUFFIXES = (".dcm", ".dicom", ".ima")
# A zip is read in memory, member by member; what it may promise is bounded before anything is inflated.
MOST_MEMBERS = 20_000
LARGEST_MEMBER = 2 * 2**30  # bytes, unpacked
LARGEST_ARCHIVE = 8 * 2**30
ADDRESS = re.compile(r"(?P<source>.+)#(?P<series>[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Part:
    """One file that should be DICOM: its name, for messages, and its bytes."""

    name: str
    read: Callable[[], bytes]


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or, if its name has no ending that says so, by its magic number."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or (suffix and not suffix[1:].isdigit()):
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(path: Path) -> list[Path]:
    """The DICOM files of a scan: a file or zip itself, those directly in a folder, or else all below it."""
    path = split_address(path)[0]
    if not path.is_dir():
        return [path]
    return _among(sorted(path.iterdir())) or _among(sorted(path.rglob("*")))


def _among(paths: list[Path]) -> list[Path]:
    """The DICOM files among paths and, where there are any, those that may have been: they count as unreadable."""
    files = [path for path in paths if not path.name.startswith(".") and not path.is_dir()]
    dicom = {file for file in files if is_dicom(file)}
    return [file for file in files if file in dicom or _was_dicom(file)] if dicom else []


def _was_dicom(path: Path) -> bool:
    """Whether a file without an ending that says what it is cannot be looked at, or is empty, or holds only zeros."""
    if path.name.upper() == "DICOMDIR" or (path.suffix and not path.suffix[1:].isdigit()):
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return not any(file.read(132))
    except OSError:
        return True


def split_address(path: Path) -> tuple[Path, int | None]:
    """``folder#2`` is the second largest series of ``folder``, where ``--series all`` reads each."""
    match = ADDRESS.fullmatch(path.name)
    if match is None or path.exists():
        return path, None
    return path.with_name(match["source"]), int(match["series"])


def parts(path: Path) -> list[Part]:
    """Every file of a scan that should be DICOM.

    Raises:
        ScanError: a zip that is damaged, encrypted, promises too much, or holds no DICOM.
    """
    if path.suffix.lower() == ".zip":
        return _members(path)
    return [Part(file.name, _reader(file)) for file in dicom_files(path)]


def _reader(file: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ScanError(file, "is not an ordinary file")
        return patiently(file.read_bytes)

    return read


def _members(path: Path) -> list[Part]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            raise ScanError(path, look_of(file.read(64))) from None
    members = [member for member in archive.infolist() if not member.is_dir() and member.file_size]
    size = sum(member.file_size for member in members)
    largest = max((member.file_size for member in members), default=0)
    if len(members) > MOST_MEMBERS or size > LARGEST_ARCHIVE or largest > LARGEST_MEMBER:
        raise ScanError(
            path,
            f"promises {len(members)} files of {size / 2**30:.1f} GiB, more than the {MOST_MEMBERS} files and "
            f"{LARGEST_ARCHIVE >> 30} GiB that are read from a zip; unpack it first",
        )
    if any(member.flag_bits & 1 for member in members):
        raise ScanError(path, "is encrypted; unpack it first")
    found = [Part(Path(m.filename).name, _member_reader(archive, m)) for m in members if _is_member(archive, m)]
    if not found:
        raise ScanError(path, "holds no DICOM files; unpack it if it holds slices or volumes")
    return found


def _is_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    path = Path(member.filename)
    if path.name.startswith(".") or "__MACOSX" in path.parts or path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with archive.open(member) as file:
        return file.read(132)[128:] == b"DICM"


def _member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: archive.read(member)


def holds_dicom(path: Path) -> bool:
    """Whether a zip holds DICOM; told from its first members, none of them unpacked whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_is_member(archive, member) for member in archive.infolist()[:64])
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return False
