"""A DICOM series as a hospital exports it, and ways to change it; slice 0 is at the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from conftest import smooth_volume
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from cov3d.config import Reading

SPACING = (0.7, 0.9, 0.8)
GAPS = Reading(allow_gaps=True)


def hounsfield(slices: int = 40, side: int = 24) -> np.ndarray:
    """HU from −1000 to 500, no two slices alike, rows fewer than columns."""
    return (smooth_volume(slices, side)[:, : side - 6].astype(np.int16) * 6 - 1000).clip(-1000, 500).astype(np.int16)


HU = hounsfield()


def in_order(folder: Path) -> list[Path]:
    """The series' files from head to feet."""
    return sorted(folder.glob("*.dcm"), key=lambda file: -float(pydicom.dcmread(file).ImagePositionPatient[2]))


def edit(folder: Path, change: Callable[[Dataset, int], object], only: slice = slice(None)) -> Path:
    """Change the headers of a series, slice 0 at the head."""
    for index, file in list(enumerate(in_order(folder)))[only]:
        dataset = pydicom.dcmread(file)
        change(dataset, index)
        dataset.save_as(file)
    return folder


def put(**elements: object) -> Callable[[Dataset, int], object]:
    """A change that sets elements to the same value in every header."""

    def change(dataset: Dataset, index: int) -> None:
        for name, value in elements.items():
            setattr(dataset, name, value)

    return change


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: edit(folder, lambda dataset, index: [delattr(dataset, name) for name in names])


def raw(name: str, value: bytes) -> Callable[[Path], object]:
    """An element with bytes that pydicom would not write."""

    def change(dataset: Dataset, index: int) -> None:
        del dataset[name]
        tag = pydicom.tag.Tag(name)
        dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(value), value, 0, False, True)

    return lambda folder: edit(folder, change)


def add(folder: Path, name: str, index: int = 0, **elements: object) -> Path:
    """A further file like slice ``index``, with other elements and an identity of its own."""
    dataset = pydicom.dcmread(in_order(folder)[index])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for element, value in elements.items():
        setattr(dataset, element, value)
    dataset.save_as(folder / name)
    return folder / name
