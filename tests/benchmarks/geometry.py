"""Four DICOM folders that hospitals have, and the distance of slices that each reader finds in them.

    python tests/benchmarks/geometry.py

A drawn series of 60 slices, .7 mm apart: as it is; with one coronal localizer of the same series; with five slices
missing; with InstanceNumber scrambled. Needs SimpleITK and highdicom, and torchio (``pip install '.[benchmarks]'``).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom

import cov3d
from cov3d.chest import draw
from cov3d.forms import write_dicom


def in_order(folder: Path) -> list[Path]:
    """The files from feet to head."""
    return sorted(folder.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))


def localizer(folder: Path) -> None:
    dataset = pydicom.dcmread(in_order(folder)[30])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    dataset.ImagePositionPatient = [-100, 0, 100]
    dataset.save_as(folder / "localizer.dcm")


def gap(folder: Path) -> None:
    for file in in_order(folder)[20:25]:
        file.unlink()


def scrambled(folder: Path) -> None:
    numbers = np.random.default_rng(0).permutation(60)
    for file, number in zip(in_order(folder), numbers, strict=True):
        dataset = pydicom.dcmread(file)
        dataset.InstanceNumber = int(number)
        dataset.save_as(file)


def by_cov3d(folder: Path) -> float:
    return cov3d.read(folder).spacing[0]


def by_simpleitk(folder: Path) -> float:
    import SimpleITK as sitk

    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))).GetSpacing()[2]


def by_torchio(folder: Path) -> float:
    import torchio

    return torchio.ScalarImage(folder).spacing[2]


def by_highdicom(folder: Path) -> float:
    import highdicom

    return highdicom.get_volume_from_series([pydicom.dcmread(file) for file in folder.iterdir()]).spacing[0]


CASES: dict[str, Callable[[Path], None]] = {
    "good": lambda folder: None,
    "localizer": localizer,
    "five missing": gap,
    "scrambled numbers": scrambled,
}
READERS = {"cov3d": by_cov3d, "SimpleITK": by_simpleitk, "torchio": by_torchio, "highdicom": by_highdicom}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what C++ says on standard error."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)


def main() -> None:
    print(f"{'':18}" + "".join(f"{name:>14}" for name in READERS))
    for case, change in CASES.items():
        cells = []
        for reader in READERS.values():
            with tempfile.TemporaryDirectory() as folder:
                write_dicom(Path(folder) / "series", draw(0, 1, 64, 60).hu, (0.7, 5.0, 5.0))
                change(Path(folder) / "series")
                try:
                    with quiet():
                        cells.append(f"{reader(Path(folder) / 'series'):.3f}")
                except Exception as error:
                    cells.append("refused" if not isinstance(error, ImportError) else "-")
        print(f"{case:18}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
