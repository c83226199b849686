"""Read a scan of any form, and find the scans in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cov3d.console import natural
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.scans.scan import FORMS, Scan, reading
from cov3d.scans.slices import SLICE_NAME, read_slices, slice_files


def read(path: str | Path) -> Scan:
    """Read a scan: a folder of slices or a volume file.

    Raises:
        ScanError: whatever is wrong with it, in one sentence.
    """
    path = Path(path)
    with reading(path):
        if path.is_dir():
            return read_slices(path)
        reader = _volume_reader(path)
        if reader is None:
            path.stat()  # a file that is not there is said to be so
            raise ScanError(path, f"is no form of scan that cov3d reads ({FORMS})")
        return reader(path)


def scan_files(path: Path) -> list[Path]:
    """The files that a scan is made of."""
    with reading(path):
        return slice_files(path) if path.is_dir() else [path]


def scan_name(path: Path) -> str:
    """A scan's name without what belongs to its file form: ``ct_scan_3`` of ``ct_scan_3.nii.gz``."""
    for suffix in VOLUMES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_scans(folder: str | Path) -> list[Path]:
    """All scans in ``folder`` and below, in natural order: each folder that holds slices, each volume file."""
    folder = Path(folder)
    return sorted(set(_find(folder, set())), key=lambda path: natural(path.as_posix()))


def ask_scans(asked: Iterable[str | Path]) -> list[Path]:
    """The scans that a user's paths mean: each path itself if it is a scan, else the scans below it.

    A path that is not there, or a folder without scans, stays in the list: it fails when it is read, and costs one row.

    Raises:
        SettingError: nothing was asked for.
        Cov3dError: there is no scan in all that was asked for.
    """
    paths = [Path(path) for path in asked]
    if not paths:
        raise SettingError("name the scans, or folders of scans")
    found = {path: find_scans(path) if path.is_dir() else [path] for path in paths}
    if not any(found.values()):
        raise Cov3dError(f"{', '.join(map(str, paths))}: no scans found (looked for {FORMS})")
    scans: dict[Path, Path] = {}
    for path in paths:
        for scan in found[path] or [path]:
            scans.setdefault(scan.resolve(), scan)
    return sorted(scans.values(), key=lambda path: natural(path.as_posix()))


def _find(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Walk through links too (people link data sets), but into each folder once."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    if any(SLICE_NAME.fullmatch(entry.name) for entry in entries):
        yield folder
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if _is_folder(entry):
            yield from _find(Path(entry.path), seen)
        elif _volume_reader(Path(entry.path)):
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _nifti(path: Path) -> Scan:
    from cov3d.scans.nifti import read_nifti  # nibabel takes half a second; JPEG folders do without it

    return read_nifti(path)


VOLUMES: dict[str, Callable[[Path], Scan]] = {".nii.gz": _nifti, ".nii": _nifti}


def _volume_reader(path: Path) -> Callable[[Path], Scan] | None:
    name = path.name.lower()
    return next((reader for suffix, reader in VOLUMES.items() if name.endswith(suffix)), None)
