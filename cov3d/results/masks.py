"""Where masks of lesions are written: ``--masks FOLDER``, a file for each scan."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cov3d.commit import check_writable
from cov3d.console import few
from cov3d.errors import SettingError
from cov3d.nets.build import MASKS
from cov3d.nets.model import Model
from cov3d.scans.read import scan_name

SUFFIX = ".nii.gz"
LONGEST_NAME = 200  # bytes; a disk's longest is 255
HASH_LENGTH = 8


def check_masks(folder: Path, asked: Iterable[Path], scans: Iterable[Path], models: Sequence[Model]) -> None:
    """Raise a SettingError for a folder of masks that cannot be, or where masks would be taken for scans; or if no model draws.

    ``asked`` is what a user asked answers for, ``scans`` the scans there.
    """
    if not any(MASKS in model.heads for model in models):
        names = [model.source.name for model in models if model.source]
        raise SettingError(
            f"--masks: none of the models draws masks ({few(names)}); name one that does with --model, "
            "such as the run of cov3d pretrain --method segmentation"
        )
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"--masks {folder} is a file; name a folder")
    place = Path(os.path.realpath(folder))
    for path in (*asked, *scans):
        scan = Path(os.path.realpath(path))
        if scan in (place, *place.parents):
            raise SettingError(f"--masks {folder} lies in {path}, where masks would be taken for scans; name another")
        if place == scan.parent:
            raise SettingError(f"--masks {folder} holds scans; masks would be taken for scans among them; name another")
    check_writable(folder)


def foreign_masks(folder: Path, names: Iterable[str]) -> list[str]:
    """Masks in a folder that are not of the scans that are answered now."""
    return sorted({path.name for path in folder.glob(f"*{SUFFIX}")} - set(names))


def mask_names(scans: Mapping[str, Path], before: Mapping[str, str]) -> dict[str, str]:
    """A file name for each scan's mask: the scan's name, and a hash of its place if others are called the same.

    ``scans`` are by a hash of their place, and so is ``before``, the names that an earlier run gave, which stay.
    """
    plain = {place: _stem(path) for place, path in scans.items()}
    taken = Counter(_folded(f"{stem}{SUFFIX}") for place, stem in plain.items() if place not in before)
    taken.update(_folded(name) for name in before.values())
    names = {}
    for place, stem in plain.items():
        alone = taken[_folded(f"{stem}{SUFFIX}")] == 1 and len(os.fsencode(stem)) <= LONGEST_NAME
        name = stem if alone else f"{_cut(stem)}-{place[:HASH_LENGTH]}"
        names[place] = before.get(place, f"{name}{SUFFIX}")
    return names


def check_free(folder: Path, names: Iterable[str]) -> None:
    """Raise a SettingError if masks of the same names are there, which nobody asked to replace."""
    there = sorted(name for name in names if (folder / name).exists())
    if there:
        raise SettingError(f"{folder} holds {few(there)} already; say --overwrite, or another --masks")


def _stem(path: Path) -> str:
    return scan_name(path) or scan_name(Path(os.path.realpath(path))) or "scan"


def _cut(stem: str) -> str:
    """A name short enough for a disk with a hash and a suffix behind it."""
    return os.fsdecode(os.fsencode(stem)[:LONGEST_NAME])


def _folded(name: str) -> str:
    """As disks compare names that know no capitals."""
    return unicodedata.normalize("NFC", name).casefold()
