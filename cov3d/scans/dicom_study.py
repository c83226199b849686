"""Which folders of DICOM are one scan: hospitals export a study as a folder for each series, or a series in several."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydicom.tag import Tag

from cov3d.errors import ScanError
from cov3d.scans.dicom_files import Part, files_in, folders_below, part_of, split_address
from cov3d.scans.dicom_headers import header
from cov3d.scans.dicom_zip import members


class Identity(NamedTuple):
    """Whose image a file is, to compare and never to show; what its header does not say is empty."""

    patient: str
    study: str
    series: str
    instance: str


IDENTITY = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def identity(part: Part) -> Identity:
    """Whose image a file is.

    Raises:
        ScanError, OSError: its header cannot be read.
    """
    said = header(part, [Tag(name) for name in IDENTITY])
    return Identity(*(str(said[name].value or "").strip() if name in said else "" for name in IDENTITY))


def dicom_files(path: Path) -> list[Path]:
    """The DICOM files of a scan: a file or zip itself; of a folder, those in it, and those below if of the same study.

    Below a folder that holds none itself, all are meant, whatever they are: :func:`read_dicom` says what they are.
    """
    path = split_address(path)[0]
    if not path.is_dir():
        return [path]
    own = files_in(path)
    below = {folder: files for folder in folders_below(path) if (files := files_in(folder))}
    if own and not _one_study([own, *below.values()]):
        return own
    return [*own, *(file for files in below.values() for file in files)]


def parts(path: Path) -> list[Part]:
    """Every file of a scan that should be DICOM.

    Raises:
        ScanError: a zip that is damaged, encrypted, promises too much, or holds no DICOM.
    """
    return members(path) if path.suffix.lower() == ".zip" else [part_of(file) for file in dicom_files(path)]


def whole_studies(root: Path, folders: Sequence[Path]) -> list[Path]:
    """Folders of DICOM below ``root``, those of one study taken together: the innermost folder that holds them all.

    The folder that was asked for holds scans and is none, unless it holds files itself or parts of one series: its folders
    may be patients whom a de-identification made one.
    """
    if len(folders) < 2:
        return list(folders)
    common = Path(os.path.commonpath(folders))
    if _one_study(map(files_in, folders)) and (common != root or common in folders or _share_a_series(folders)):
        return [common]
    branches: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        branches[folder.relative_to(common).parts[0] if folder != common else ""].append(folder)
    return [scan for branch in branches.values() for scan in whole_studies(root, branch)]


def _one_study(groups: Iterable[Sequence[Path]]) -> bool:
    """Whether groups of files are all of one patient (or of none) and one study, as far as first and last files say."""
    first = None
    for said in _ends(groups):
        if not said.study or (first or said)[:2] != said[:2]:
            return False
        first = said
    return first is not None


def _share_a_series(folders: Iterable[Path]) -> bool:
    """Whether a series goes on from one folder to another, and is no copy of it."""
    said = [list(_identities(files_in(folder))) for folder in folders]
    series = [{one.series for one in own} for own in said]
    instances = [{one.instance for one in own} for own in said]
    return _meet(series) and not _meet(instances)


def _meet(sets: Sequence[set[str]]) -> bool:
    """Whether any two sets share something."""
    return len(set().union(*sets)) < sum(map(len, sets))


def _ends(groups: Iterable[Sequence[Path]]) -> Iterator[Identity]:
    """Whose images the first and the last file of each group are that can be read."""
    for files in groups:
        yield from islice(_identities(files), 1)
        yield from islice(_identities(files[:0:-1]), 1)


def _identities(files: Iterable[Path]) -> Iterator[Identity]:
    for file in files:
        with suppress(ScanError, OSError):
            yield identity(part_of(file))
