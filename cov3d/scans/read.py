"""Read a scan of any form, and find the scans in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cov3d.config import Reading
from cov3d.console import few, natural
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.scans.boundary import boundary, patiently
from cov3d.scans.scan import FORMS, Scan
from cov3d.scans.slices import SLICE_NAME, read_slices, slice_files

ARCHIVES = (".7z", ".rar", ".tar", ".tgz", ".tar.gz")


def read(path: str | Path, reading: Reading | None = None) -> Scan:
    """Read a scan: a folder of slices or of DICOM files, or a volume file.

    ``reading`` says what its files mean and what is forgiven in them.

    Raises:
        ScanError: whatever is wrong with it, in one sentence.
    """
    path = Path(path)
    with boundary(path):
        return patiently(lambda: _form(path).read(path, reading or Reading()))


def scan_files(path: Path) -> list[Path]:
    """The files that a scan is made of."""
    with boundary(path):
        return _form(path).files(path)


def scan_name(path: Path) -> str:
    """A scan's name without what belongs to its file form: ``ct_scan_3`` of ``ct_scan_3.nii.gz``."""
    for suffix in VOLUMES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_scans(folder: str | Path) -> list[Path]:
    """All scans in ``folder`` and below, in natural order: each folder of slices or DICOM files, each volume file."""
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


# Forms


@dataclass(frozen=True)
class Form:
    """A form that scans come in: how it is read, and which files it is made of."""

    read: Callable[[Path, Reading], Scan]
    files: Callable[[Path], list[Path]] = lambda path: [path]


def _form(path: Path) -> Form:
    """The form of the scan at a path.

    Raises:
        ScanError: none, or two of them, so that nobody can say which is meant.
    """
    if path.is_dir():
        return _folder_form(path)
    form = _volume_form(path.name)
    if form is None:
        path.stat()  # a file that is not there is said to be so
        if path.name.lower().endswith(ARCHIVES):
            raise ScanError(path, "is an archive; unpack it first")
        raise ScanError(path, f"is no form of scan that cov3d reads ({FORMS})")
    return form


def _folder_form(folder: Path) -> Form:
    slices, others = slice_files(folder), _other_scans(folder)
    if slices and others:
        names = few([path.name for path in others])
        raise ScanError(
            folder, f"holds slices ({slices[0].name}, …) beside {names}: which is the scan? Keep them apart"
        )
    return SLICES


def _other_scans(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    return [path for path in entries if not path.name.startswith(".") and _volume_form(path.name) and path.is_file()]


def _nifti(path: Path, reading: Reading) -> Scan:
    from cov3d.scans.nifti import read_nifti  # nibabel takes half a second; JPEG folders do without it

    return read_nifti(path, reading)


SLICES = Form(read_slices, slice_files)
VOLUMES: dict[str, Form] = {".nii.gz": Form(_nifti), ".nii": Form(_nifti)}


def _volume_form(name: str) -> Form | None:
    return next((form for suffix, form in VOLUMES.items() if name.lower().endswith(suffix)), None)


# Finding


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
    names = [entry.name for entry in entries]
    is_scan = any(SLICE_NAME.fullmatch(name) for name in names)
    if is_scan:
        yield folder
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if _is_folder(entry):
            yield from _find(Path(entry.path), seen)
        elif not is_scan and _volume_form(entry.name):
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
