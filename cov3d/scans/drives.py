"""Scans that fail one by one, or all at once, since the drive that they lie on is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cov3d.errors import Cov3dError
from cov3d.scans.dicom_files import split_address


def drives_of(scans: Iterable[Path]) -> dict[Path, int]:
    """The drive that each scan lies on, of those that are there."""
    found = {}
    for path in scans:
        with contextlib.suppress(OSError):
            found[path] = split_address(path)[0].stat().st_dev
    return found


def check_drive(scan: Path, drives: Mapping[Path, int], then: str) -> None:
    """Raise a Cov3dError if a scan that failed was there before, and by now neither it nor any other of its drive is.

    ``then`` is what to do when it is there again.
    """
    alike = [path for path, drive in drives.items() if drive == drives.get(scan)]
    if len(alike) < 2 or _is_within_reach(scan) or any(map(_is_within_reach, alike)):
        return
    raise Cov3dError(
        f"{scan}: none of the {len(alike)} scans on its drive can be reached any more; when the drive is there again, {then}"
    )


def _is_within_reach(scan: Path) -> bool:
    """Whether something of a scan can be read, were it a byte."""
    path = split_address(scan)[0]
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                return any(True for _ in entries)
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True
