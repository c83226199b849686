"""Which files are DICOM, and how they are opened."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cov3d.errors import ScanError
from cov3d.scans.boundary import patiently

SUFFIXES = (".dcm", ".dicom", ".ima")
# What says by its ending that it is something else is not looked into: folders of slices hold thousands of files.
OTHERS = re.compile(
    r"\..*|DICOMDIR|.*\.(jpe?g|png|bmp|gif|tiff?|nii|gz|mh[ad]|z?raw|nrrd|zip|7z|rar|tar|tgz|[ct]sv|txt|md|json|xml|html?|pdf|"
    r"xlsx?|docx?|pt|py|log|ini|inf|db|exe|dll)",
    re.IGNORECASE,
)
HEAD = 132  # bytes: the preamble, and the magic number after it
# Files older than the magic number begin with an element of the first groups: tag, then its VR or a length below 64 KiB.
BARE = re.compile(rb"[\x02\x08]\x00[\x00-\x20]\x00([A-Z]{2}|..\x00\x00)", re.DOTALL)
LARGEST_FILE = 2 * 2**30  # bytes
ADDRESS = re.compile(r"(?P<source>.+)#(?P<series>[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Part:
    """One file that should be DICOM: its name, for messages, and how it is opened."""

    name: str
    open: Callable[[], BinaryIO]

    def read(self) -> bytes:
        """All its bytes."""
        with self.open() as file:
            return file.read()


def part_of(file: Path) -> Part:
    """A file on disk."""
    return Part(file.name, partial(_open, file))


def _open(file: Path) -> BinaryIO:
    if not stat.S_ISREG(patiently(file.stat).st_mode):  # a pipe would block for ever
        raise ScanError(file, "is not an ordinary file")
    opened = patiently(lambda: file.open("rb"))
    if os.fstat(opened.fileno()).st_size > LARGEST_FILE:
        opened.close()
        raise ScanError(file, f"is larger than {LARGEST_FILE >> 30} GiB, which no CT image is")
    return opened


def split_address(path: Path) -> tuple[Path, int | None]:
    """``folder#2`` is the second largest series of ``folder``, where ``--series all`` reads each."""
    match = ADDRESS.fullmatch(path.name)
    if match is None or path.exists():
        return path, None
    return path.with_name(match["source"]), int(match["series"])


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its ending, or, where that says nothing, by how it begins."""
    return path.suffix.lower() in SUFFIXES or (may_be_dicom(path.name) and begins_as_dicom(_head(path) or b""))


def may_be_dicom(name: str) -> bool:
    """Whether a file's name leaves it open that it is DICOM."""
    return OTHERS.fullmatch(name) is None


def begins_as_dicom(head: bytes) -> bool:
    """Whether a file with such first bytes is DICOM."""
    return head[128:HEAD] == b"DICM" or BARE.match(head) is not None


def files_in(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, and those beside them that were, and count as unreadable."""
    files = [path for path in sorted(folder.iterdir()) if may_be_dicom(path.name) and not path.is_dir()]
    found = dicom_among([(file, b"" if file.suffix.lower() in SUFFIXES else _head(file)) for file in files])
    return [file for file, is_meant in zip(files, found, strict=True) if is_meant]


def dicom_among(files: Sequence[tuple[Path, bytes | None]]) -> list[bool]:
    """Which of files, by their names and first bytes (None where they cannot be read), are DICOM or have been.

    What has been is what is named as they are: by the same ending, or, where they have none, by a number. A README is none.
    """
    dicom = [path.suffix.lower() in SUFFIXES or begins_as_dicom(head or b"") for path, head in files]
    endings = {_ending(path) for (path, _), is_one in zip(files, dicom, strict=True) if is_one}
    return [
        is_one or (_ending(path) in endings and (bool(_ending(path)) or _was_dicom(path, head)))
        for (path, head), is_one in zip(files, dicom, strict=True)
    ]


def _ending(file: Path) -> str:
    """What a file's name ends in; numbers, as UIDs end in, are no ending."""
    return "" if file.suffix[1:].isdigit() else file.suffix.lower()


def _was_dicom(file: Path, head: bytes | None) -> bool:
    """Whether a file without an ending was DICOM once."""
    return head is None or not any(head) or any(character.isdigit() for character in file.name)


def _head(path: Path) -> bytes | None:
    """A file's first bytes; None if it cannot be read, as a pipe, which would block for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return None


def folders_below(folder: Path) -> list[Path]:
    """All folders below, through links too, each once, in order of their names; hidden ones are passed over."""
    return list(_folders(folder, {_identity(folder)}))


def _folders(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__MACOSX")) or not path.is_dir() or (identity := _identity(path)) in seen:
            continue
        seen.add(identity)
        yield path
        yield from _folders(path, seen)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
