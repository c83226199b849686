"""Read a scan of any form, and find the scans in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cov3d.config import Reading
from cov3d.console import few, natural
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.scans.boundary import boundary, check_regular, patiently
from cov3d.scans.dicom_files import files_in, folders_below, is_dicom, split_address
from cov3d.scans.scan import SUPPORTED, Scan
from cov3d.scans.slices import SLICE_NAME, read_slices, slice_files

ARCHIVES = (".7z", ".rar", ".tar", ".tgz", ".tar.gz")
# Volumes and slices of forms that are not read; they are found, so that they fail and do not vanish.
UNREAD_VOLUMES = (".nii.bz2", ".nii.xz", ".nii.zst", ".hdr", ".nhdr", ".mgz", ".mgh", ".mnc", ".gipl")
UNREAD_SLICE = re.compile(r".*\.(jpe?g|png|tiff?|bmp|jp2|dcm\.(gz|bz2|xz))", re.IGNORECASE)
MASKS = "masks"  # folders of them
LITTER = ("thumbs.db", "desktop.ini")  # what Windows leaves in folders


def read(path: str | Path, reading: Reading | None = None) -> Scan:
    """Read a scan: a folder of slices or of DICOM files, or a volume file.

    ``reading`` says what its files mean and what is forgiven in them.

    Raises:
        ScanError: whatever is wrong with it, in one sentence.
    """
    path = Path(path)
    with boundary(path):
        return patiently(lambda: _reader(path).read(path, reading or Reading()))


def scan_files(path: Path) -> list[Path]:
    """The files that a scan is made of."""
    with boundary(path):
        return patiently(lambda: _reader(path).files(path))


def scan_name(path: Path) -> str:
    """A scan's name without what belongs to its file form: ``ct_scan_3`` of ``ct_scan_3.nii.gz``."""
    for suffix in VOLUMES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_scans(folder: str | Path) -> list[Path]:
    """All scans in ``folder`` and below, in natural order: each folder of slices or DICOM files, each volume file.

    An archive is one, too, and fails when it is read: it may hold what was asked for.
    """
    folder = Path(folder)
    found = list(dict.fromkeys(_find(folder, set())))
    dicom = [path for path in found if path.is_dir() and _is_dicom_folder(path)]
    found = [path for path in found if path not in set(dicom)] + _whole_studies(folder, dicom)
    return sorted(found, key=lambda path: natural(path.as_posix()))


def lost_scans(folder: Path, found: Iterable[Path]) -> list[Path]:
    """Folders below ``folder`` that must have been scans, and are not among those found; they fail when they are read.

    They hold nothing, as what was not copied; or pictures that are not named as slices, or files packed one by one.
    """
    try:
        known = {path for scan in found for path in (scan, *scan.parents)}
        return [below for below in folders_below(folder) if below not in known and _is_lost(below)]
    except OSError:  # what cannot be looked into is found as a scan, and fails
        return []


def ask_scans(asked: Iterable[str | Path], reading: Reading | None = None) -> list[Path]:
    """The scans that a user's paths mean: each path itself if it is a scan, else the scans below it, but none in ``masks``.

    With ``--series all`` each series of a DICOM scan is one. A path that is not there, or a folder without scans, stays in
    the list: it fails when it is read, and costs one row.

    Raises:
        SettingError: nothing was asked for.
        Cov3dError: there is no scan in all that was asked for.
    """
    paths = [Path(path) for path in asked]
    if not paths:
        raise SettingError("name the scans, or folders of scans")
    found = {path: find_scans(path) if _is_folder(path) else [path] for path in paths}
    if not any(_without_masks(below, path) for path, below in found.items()):
        raise Cov3dError(f"{', '.join(map(str, paths))}: no scans found (looked for {SUPPORTED})")
    scans: dict[str, Path] = {}
    for path in paths:
        for whole in _without_masks([*(found[path] or [path]), *lost_scans(path, found[path])], path):
            for scan in each_series(whole, reading or Reading()):
                scans.setdefault(os.path.realpath(scan), scan)
    return sorted(scans.values(), key=lambda path: natural(path.as_posix()))


def _without_masks(scans: list[Path], folder: Path) -> list[Path]:
    """The scans below a folder that do not lie in one called ``masks`` there, where studies keep lesions."""
    return [path for path in scans if MASKS not in path.relative_to(folder).parts[:-1]]


# Forms


@dataclass(frozen=True)
class Reader:
    """Who reads a form of scan, and knows which files such a scan is made of."""

    read: Callable[[Path, Reading], Scan]
    files: Callable[[Path], list[Path]] = lambda path: [path]


def each_series(path: Path, reading: Reading) -> list[Path]:
    """The scan itself; with ``--series all``, an address (``folder#2``) for each series of a DICOM scan that has several."""
    if reading.series != "all" or split_address(path)[1] or not is_dicom_scan(path):
        return [path]
    from cov3d.scans.dicom import series_of

    try:
        with boundary(path):
            return series_of(path)
    except ScanError:
        return [path]  # it fails when it is read


def is_dicom_scan(path: Path) -> bool:
    """Whether a scan is read as DICOM."""
    try:
        with boundary(path):
            return _reader(path) is DICOM
    except ScanError:
        return False


def _reader(path: Path) -> Reader:
    """The form of the scan at a path.

    Raises:
        ScanError: none, or two of them, so that nobody can say which is meant.
    """
    path, series = split_address(path)
    if path.is_dir():
        return _folder_reader(path)
    form = _file_reader(path)
    if form is None or (series and form is not DICOM):
        path.stat()  # a file that is not there is said to be so
        if path.name.lower().endswith(ARCHIVES):
            raise ScanError(path, "is an archive; unpack it first")
        raise ScanError(path, f"is no form of scan that cov3d reads ({SUPPORTED})")
    check_regular(path)
    return form


def _folder_reader(folder: Path) -> Reader:
    """Slices, DICOM, or the only volume of a folder."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    slices, dicom = slice_files(folder)[:1], [path for path in entries if is_dicom(path)][:1]
    volumes = [path for path in entries if path.name.lower().endswith(tuple(VOLUMES)) and path.suffix.lower() != ".zip"]
    if len(slices + dicom + volumes) > 1:
        names = few([path.name for path in slices + dicom + volumes])
        raise ScanError(folder, f"holds several scans, and nobody can say which is meant ({names}); keep them apart")
    if volumes:
        form = VOLUMES[next(suffix for suffix in VOLUMES if volumes[0].name.lower().endswith(suffix))]
        return Reader(lambda _, reading: form.read(volumes[0], reading), lambda _: form.files(volumes[0]))
    return DICOM if dicom or (not slices and any(map(files_in, folders_below(folder)))) else SLICES


# Each library takes half a second to import; who reads slices does without them.


def _nifti(path: Path, reading: Reading) -> Scan:
    from cov3d.scans.nifti import read_nifti

    return read_nifti(path, reading)


def _itk(path: Path, reading: Reading) -> Scan:
    from cov3d.scans.itk import read_itk

    return read_itk(path, reading)


def _itk_files(path: Path) -> list[Path]:
    from cov3d.scans.itk import itk_files

    return itk_files(path)


def _dicom(path: Path, reading: Reading) -> Scan:
    from cov3d.scans.dicom import read_dicom

    return read_dicom(path, reading)


def _dicom_files(path: Path) -> list[Path]:
    from cov3d.scans.dicom_study import dicom_files

    return dicom_files(path)


SLICES = Reader(read_slices, slice_files)
DICOM = Reader(_dicom, _dicom_files)
NIFTI = Reader(_nifti)
ITK = Reader(_itk, _itk_files)
VOLUMES: dict[str, Reader] = {
    ".nii.gz": NIFTI,
    ".nii": NIFTI,
    ".mha": ITK,
    ".mhd": ITK,
    ".nrrd": ITK,
    ".zip": DICOM,
}


def _file_reader(path: Path) -> Reader | None:
    """The form of a single file."""
    name = path.name.lower()
    return next((form for suffix, form in VOLUMES.items() if name.endswith(suffix)), DICOM if is_dicom(path) else None)


# Finding


def _find(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Walk through links too (people link data sets), but into each folder once."""
    try:
        status = patiently(folder.stat)
        entries = patiently(lambda: sorted(os.scandir(folder), key=lambda entry: entry.name))
    except FileNotFoundError:
        return
    except OSError:  # not ours to look into: it may be a scan, so it stays in the list, and fails when it is read
        yield folder
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    entries = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    files = [Path(entry.path) for entry in entries if not _is_folder(entry)]
    is_scan = any(SLICE_NAME.fullmatch(file.name) for file in files) or any(map(is_dicom, files))
    if is_scan:
        yield folder
    for file in files:
        if file.name.lower().endswith((".zip", *ARCHIVES) if is_scan else (*VOLUMES, *ARCHIVES, *UNREAD_VOLUMES)):
            yield file
    for entry in entries:
        if _is_folder(entry):
            yield from _find(Path(entry.path), seen)


def _is_lost(folder: Path) -> bool:
    entries = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in LITTER]
    return not entries or any(UNREAD_SLICE.fullmatch(path.name) for path in entries)


def _is_dicom_folder(folder: Path) -> bool:
    """Whether a folder's scan is read as DICOM; one that cannot be read is left as it is."""
    try:
        with boundary(folder):
            return bool(files_in(folder)) and not slice_files(folder)
    except ScanError:
        return False


def _whole_studies(root: Path, folders: list[Path]) -> list[Path]:
    if len(folders) < 2:
        return folders
    from cov3d.scans.dicom_study import whole_studies

    try:
        with boundary(root):
            return whole_studies(root, folders)
    except ScanError:  # each of them fails when it is read
        return folders


def _is_folder(entry: Path | os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; a name too long for any disk
        return False
