"""One volume in every form that scans come in: JPEG slices, NIfTI, DICOM, MetaImage, NRRD.

Every writer takes the same: ``path``, a folder or a file with its suffix; ``hu`` ``(D, H, W)`` int16, axes to Inferior,
Posterior, Left; ``spacing`` in mm ``(D, H, W)``; and ``seed``, a number or a generator, for what a form leaves open: names,
numbers, UIDs. It returns the path. The volume's middle lies at 0 mm of the patient's coordinates. Same arguments, same bytes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.random import Generator

from cov3d.commit import commit
from cov3d.config import Preprocessing
from cov3d.errors import SettingError

WINDOW = (Preprocessing.window_low, Preprocessing.window_high)  # HU of grey 0 and 255
CT_RANGE = (-1024, 3071)  # HU that a scanner's twelve bits hold
COMPRESSION = 4  # of zlib; noise hardly shrinks further, only slower


def write_jpeg(path: Path, hu: np.ndarray, spacing: Sequence[float], seed: int | Generator = 0) -> Path:
    """Write a folder of windowed slices, RGB-coded grey as in COV19-CT-DB, whose numbers begin anywhere."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    low, high = WINDOW
    grey = np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    first = rng.choice((0, 1, int(rng.integers(2, 90))))
    for number, pixels in enumerate(grey, int(first)):
        image = Image.fromarray(pixels).convert("RGB")
        commit(path / f"{number}.jpg", partial(image.save, format="JPEG", quality=95))
    return path


def write_nifti(path: Path, hu: np.ndarray, spacing: Sequence[float], seed: int | Generator = 0) -> Path:
    """Write one ``.nii.gz`` in HU, or a mask, whose axes point Right, Anterior, Superior: each against ours."""
    import nibabel

    voxels = hu.transpose()[::-1, ::-1, ::-1]
    affine = np.diag((*spacing[::-1], 1.0))
    affine[:3, 3] = _first(voxels.shape, spacing[::-1])
    data = gzip.compress(nibabel.Nifti1Image(voxels, affine).to_bytes(), COMPRESSION, mtime=0)
    return commit(path, lambda file: file.write(data))


def write_dicom(path: Path, hu: np.ndarray, spacing: Sequence[float], seed: int | Generator = 0) -> Path:
    """Write a folder of one axial series: a CT Image (PS3.3 A.3) for each slice, uncompressed, as hospitals export it.

    Nothing but ImagePositionPatient tells where a slice lies: files are named by UIDs without an order, instances are
    numbered from the head or from the feet, and slices are thicker than they are apart. Names and ids are of nobody;
    there are no dates.

    Raises:
        SettingError: HU that a scanner's twelve bits do not hold.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    if hu.min() < CT_RANGE[0] or hu.max() > CT_RANGE[1]:
        raise SettingError(f"{path}: HU {hu.min()} to {hu.max()} do not fit a CT's {CT_RANGE[0]} to {CT_RANGE[1]}")
    rng = np.random.default_rng(seed)
    series = _series(rng, spacing)
    x, y, z = _first(hu.shape[::-1], spacing[::-1])
    numbers = np.arange(1, len(hu) + 1)[:: rng.choice((1, -1))]
    for index, number in enumerate(numbers.tolist()):
        dataset, name = Dataset(), _uid(rng)
        own = {
            "SOPInstanceUID": name,
            "InstanceNumber": number,
            "ImagePositionPatient": _decimals(x, y, -z - index * spacing[0]),  # to Left, Posterior, Superior
        }
        for keyword, value in {**series, "SOPClassUID": CTImageStorage, **own}.items():
            setattr(dataset, keyword, value)
        stored = (hu[index].astype(np.int32) - CT_RANGE[0]).astype(np.uint16)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.set_pixel_data(stored, "MONOCHROME2", bits_stored=12, generate_instance_uid=False)
        commit(path / f"{name}.dcm", partial(dataset.save_as, enforce_file_format=True))
    return path


def write_mha(path: Path, hu: np.ndarray, spacing: Sequence[float], seed: int | Generator = 0) -> Path:
    """Write one compressed MetaImage, axes to Left, Posterior, Superior as ITK writes them.

    Source: https://itk.org/Wiki/ITK/MetaIO/Documentation
    """
    data = zlib.compress(_rising(hu), COMPRESSION)
    header = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(data),
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(map(str, _first(hu.shape[::-1], spacing[::-1]))),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",  # where the axes come from
        "ElementSpacing": " ".join(str(float(mm)) for mm in spacing[::-1]),
        "DimSize": " ".join(map(str, hu.shape[::-1])),
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",  # the last line: here the voxels begin
    }
    text = "".join(f"{name} = {value}\n" for name, value in header.items())
    return commit(path, lambda file: file.write(text.encode("ascii") + data))


def write_nrrd(path: Path, hu: np.ndarray, spacing: Sequence[float], seed: int | Generator = 0) -> Path:
    """Write one gzip-encoded NRRD, axes to Left, Posterior, Superior as 3D Slicer writes them.

    Source: https://teem.sourceforge.net/nrrd/format.html
    """
    width, height, depth = (float(mm) for mm in spacing[::-1])
    header = {
        "type": "short",
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, hu.shape[::-1])),
        "space directions": f"({width},0,0) (0,{height},0) (0,0,{depth})",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        "space origin": f"({','.join(map(str, _first(hu.shape[::-1], spacing[::-1])))})",
    }
    text = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in header.items()) + "\n"
    data = gzip.compress(_rising(hu), COMPRESSION, mtime=0)
    return commit(path, lambda file: file.write(text.encode("ascii") + data))


@dataclass(frozen=True)
class Form:
    """A form: who writes it, the suffix of its one file, or, for a folder, which names (a pattern) the writer gives."""

    write: Callable[[Path, np.ndarray, Sequence[float], int | Generator], Path]
    suffix: str = ""
    members: str = ""


FORMS = {
    "jpeg": Form(write_jpeg, members=r"[0-9]+\.jpg"),
    "nifti": Form(write_nifti, ".nii.gz"),
    "dicom": Form(write_dicom, members=r"2\.25\.[0-9]+\.dcm"),
    "mha": Form(write_mha, ".mha"),
    "nrrd": Form(write_nrrd, ".nrrd"),
}


def _first(sizes: Sequence[int], spacing: Sequence[float]) -> list[float]:
    """Where the first voxel's middle lies along each axis, in mm, when the volume's middle is at 0."""
    return [float((size - 1) * mm / -2) for size, mm in zip(sizes, spacing, strict=True)]


def _rising(hu: np.ndarray) -> bytes:
    """The voxels, the lowest slice first, little-endian."""
    return hu[::-1].astype("<i2").tobytes()


def _series(rng: Generator, spacing: Sequence[float]) -> dict[str, Any]:
    """What all slices of a DICOM series share, by keyword; empty is what the standard wants named and nobody knows."""
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SyntheticData": "YES",
        "Modality": "CT",
        "PatientName": "DRAWN^CHEST",
        "PatientID": f"DRAWN-{rng.bytes(6).hex()}",
        "StudyInstanceUID": _uid(rng),
        "SeriesInstanceUID": _uid(rng),
        "FrameOfReferenceUID": _uid(rng),
        "SeriesNumber": 2,  # the first is mostly the localizer
        "PatientPosition": "HFS",
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],  # rows to Left, columns to Posterior
        "PixelSpacing": _decimals(*spacing[1:]),  # between rows, between columns
        "SliceThickness": _decimals(1.25 * spacing[0])[0],  # slices overlap, as scanners reconstruct them
        "RescaleIntercept": CT_RANGE[0],
        "RescaleSlope": 1,
        "RescaleType": "HU",
        **dict.fromkeys(("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"), ""),
        **dict.fromkeys(("ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer"), ""),
        **dict.fromkeys(("KVP", "AcquisitionNumber"), None),
    }


def _uid(rng: Generator) -> str:
    """A UID made of a random UUID (PS3.5 B.2)."""
    return f"2.25.{UUID(bytes=rng.bytes(16), version=4).int}"


def _decimals(*values: float) -> list[str]:
    """Numbers as DICOM writes them, in at most sixteen characters."""
    return [f"{value:.10g}" for value in values]
