"""Reader of NIfTI volumes, ``.nii`` and ``.nii.gz``, in HU."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from cov3d.errors import ScanError
from cov3d.scans.scan import LARGEST_SIDE, MOST_SLICES, Scan, check_regular, look_of

CANONICAL = ("I", "P", "L")
LARGEST_FILE = 8 * 2**30  # bytes of voxels; a header of 348 bytes can promise any number
# In-plane and between slices; outside, the header is wrong.
SPACING_MM = (0.1, 20.0)
NOT_FINITE_SHARE = 0.01
SHEAR_DEGREES = 1.0
OBLIQUE_DEGREES = 20.0


def read_nifti(path: Path) -> Scan:
    """Read a NIfTI volume, turned to canonical orientation, the scale of its header applied once.

    Raises:
        ScanError: truncated or damaged (a .nii.gz is read to its checksum), not three-dimensional, no plausible
            spacing, not real numbers, or more than one voxel in a hundred not finite.
    """
    check_regular(path)
    header, stored = _stored_voxels(path)
    affine, warnings = _affine(path, header)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(CANONICAL))
    stored = apply_orientation(stored, turn)
    sizes = voxel_sizes(affine)
    depth, height, width = (float(mm) for mm in sizes[np.argsort(turn[:, 0])])
    spacing = depth, height, width
    _check_spacing(path, spacing)
    slope, intercept = _scale(header, warnings)
    volume = Volume(stored, slope, intercept)
    warnings += _check_values(path, volume)
    return Scan(path, volume, unit="HU", spacing=spacing, warnings=tuple(warnings))


@dataclass(frozen=True)
class Volume(Sequence):
    """A stored volume ``(D, H, W)`` whose slices come out as float32 HU."""

    stored: np.ndarray
    slope: float
    intercept: float

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index):
        return self.stored[index].astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)


def _stored_voxels(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    """Header, and voxels ``(i, j, k)`` as stored."""
    with path.open("rb") as file:
        start = file.read(64)
    packed = start[:2] == b"\x1f\x8b"
    if packed != (path.suffix.lower() == ".gz"):
        raise ScanError(path, look_of(start) if not packed else "is gzip-compressed; name it .nii.gz")
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            header = _header(path, file)
            shape, dtype, offset = _layout(path, header)
            size = offset + int(np.prod(shape)) * dtype.itemsize
            file.seek(0)
            data = file.read(size)
            if packed and file.read(2**24):  # on to the end: the checksum stands there, and nibabel never looks
                while file.read(2**24):
                    pass
        except EOFError as error:
            raise ScanError(path, "is truncated; copy it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ScanError(path, "is damaged: its checksum is wrong; copy it again") from error
    if len(data) < size:
        raise ScanError(path, f"is truncated: {len(data)} of {size} bytes; copy it again")
    return header, np.ndarray(shape, dtype, buffer=data, offset=offset, order="F")


def _header(path: Path, file) -> nib.Nifti1Header:
    first = file.read(544)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(first):
            return kind(first[: kind.sizeof_hdr], check=True)
    raise ScanError(path, look_of(first[:64]))


def _layout(path: Path, header: nib.Nifti1Header) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and offset of the voxels, believed only if they are possible."""
    shape = tuple(int(side) for side in header.get_data_shape())
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise ScanError(path, f"expected a volume of three dimensions, got {shape}")
    if min(shape) < 1 or max(shape) > max(LARGEST_SIDE, MOST_SLICES):
        raise ScanError(path, f"its header promises {shape} voxels, which no chest CT has")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(path, f"its voxels are {dtype}, not HU; export the CT itself")
    if int(np.prod(shape)) * dtype.itemsize > LARGEST_FILE:
        raise ScanError(path, f"its header promises {shape} voxels of {dtype}, more than {LARGEST_FILE >> 30} GiB")
    offset = int(header["vox_offset"])
    if not 0 <= offset <= 2**24:
        raise ScanError(path, f"its header puts the voxels at byte {offset}")
    return shape[:3], dtype, max(offset, header.sizeof_hdr)


def _affine(path: Path, header: nib.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ScanError(path, "its affine is singular, so nobody can say how the patient lies")
    directions = affine[:3, :3] / voxel_sizes(affine)
    if np.abs(directions.T @ directions - np.eye(3)).max() > np.sin(np.deg2rad(SHEAR_DEGREES)):
        raise ScanError(path, "its axes are not at right angles (a tilted gantry?); resample it to straight ones")
    warnings = []
    oblique = np.rad2deg(np.arccos(np.clip(np.abs(directions).max(0).min(), 0, 1)))
    if oblique > OBLIQUE_DEGREES:
        warnings.append(f"the scan lies {oblique:.0f} degrees off the patient's axes; read along the nearest")
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        warnings.append("orientation unknown (sform and qform codes are 0); read as left-anterior-superior")
    zooms, sizes = np.abs(header.get_zooms()[:3]), voxel_sizes(affine)
    if not np.allclose(zooms, sizes, rtol=0.01):
        warnings.append(
            f"pixdim {zooms.round(3).tolist()} mm and affine {sizes.round(3).tolist()} mm disagree; used affine"
        )
    return affine, warnings


def _check_spacing(path: Path, spacing: Sequence[float]) -> None:
    if not all(SPACING_MM[0] <= mm <= SPACING_MM[1] for mm in spacing):
        raise ScanError(path, f"spacing {tuple(round(mm, 4) for mm in spacing)} mm is not plausible; mend its header")


def _scale(header: nib.Nifti1Header, warnings: list[str]) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        if not (slope == 0 or np.isnan(slope)):  # 0 and NaN are NIfTI's ways to say "no scale"
            warnings.append(f"scl_slope {slope}, scl_inter {intercept} ignored")
        return 1.0, 0.0
    return slope, intercept


def _check_values(path: Path, volume: Volume) -> list[str]:
    low, high, bad = np.inf, -np.inf, 0
    for hu in volume:
        if volume.stored.dtype.kind == "f":
            finite = np.isfinite(hu)
            bad += int(hu.size - np.count_nonzero(finite))
            hu = hu[finite]
        if hu.size:
            low, high = min(low, float(hu.min())), max(high, float(hu.max()))
    if bad > NOT_FINITE_SHARE * volume.stored.size:
        raise ScanError(path, f"{bad} of {volume.stored.size} voxels are NaN or infinite")
    warnings = [f"{bad} voxels are NaN or infinite and were made black"] if bad else []
    if low > -500 or high < 0:
        warnings.append(f"values {low:g}…{high:g} do not look like HU of a chest")
    return warnings
