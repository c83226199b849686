"""What a scan's files are: a quick fingerprint that any touch changes, and a slow one that only a change changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cov3d.errors import ScanError
from cov3d.scans.boundary import check_regular, patiently
from cov3d.scans.read import scan_files

UNREADABLE = "unreadable"  # in place of what a file is; reading it says why


def stat_fingerprint(path: Path) -> str:
    """A hash of names, sizes and times of a scan's files.

    Raises:
        ScanError: the scan is not there.
    """
    return _hash([(file.name, *_status(file)) for file in scan_files(path)])


def check_unchanged(path: Path, fingerprint: str) -> None:
    """Raise a ScanError if a scan's files are no longer what they were when ``fingerprint`` was taken."""
    if stat_fingerprint(path) != fingerprint:
        raise ScanError(path, "changed while it was read; run again when it is copied whole")


def content_fingerprint(path: Path) -> str:
    """A hash of names and bytes of a scan's files.

    Raises:
        ScanError: the scan is not there.
    """
    return _hash([(file.name, _digest(file)) for file in scan_files(path)])


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _status(file: Path) -> tuple[int | str, ...]:
    try:
        status = patiently(file.stat)
    except OSError:  # a link to nothing
        return (UNREADABLE,)
    return status.st_size, status.st_mtime_ns


def _digest(file: Path) -> str:
    try:
        check_regular(file)  # a pipe would block for ever
        return patiently(lambda: sha256(file))
    except (ScanError, OSError):
        return UNREADABLE


def _hash(parts: Sequence[tuple]) -> str:
    return hashlib.sha256(repr(list(parts)).encode("utf-8", errors="surrogateescape")).hexdigest()[:32]
