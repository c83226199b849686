"""Reader of NIfTI volumes, ``.nii`` and ``.nii.gz``, in HU."""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from nibabel.quaternions import quat2mat

from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.scans.boundary import check_regular, look_of
from cov3d.scans.scan import Scan
from cov3d.scans.volume import check_promise, volume_scan

BEYOND = 2**24  # bytes after the voxels that are passed over; a few packed ones can promise any number
AXES = {"R": "Right", "L": "Left", "A": "Anterior", "P": "Posterior", "S": "Superior", "I": "Inferior"}
TURNED_DEGREES = 1.0  # by which qform and sform differ; less is rounding
# nibabel says on standard error what it mends in a header; here only what concerns the scan is said.
UNHEARD = logging.Logger("unheard", logging.CRITICAL + 1)


def read_nifti(path: Path, reading: Reading) -> Scan:
    """Read a NIfTI volume, turned to canonical orientation, the scale of its header applied once.

    Raises:
        ScanError: truncated or damaged (a .nii.gz is read to its checksum), not three-dimensional, no plausible
            geometry, not real numbers, or more than one voxel in a hundred not finite.
    """
    check_regular(path)
    header, stored = _stored_voxels(path)
    scale, warnings = _scale(header)
    affine = header.get_best_affine()
    return volume_scan(path, stored, affine, reading, scale, warnings + _disagreements(header, affine))


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
            beyond = len(file.read(BEYOND)) if packed else 0  # the checksum stands at the end, and nibabel never looks
        except EOFError as error:
            raise ScanError(path, "is truncated; copy it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ScanError(path, "is damaged: its checksum is wrong; copy it again") from error
    if beyond == BEYOND:
        raise ScanError(path, "unpacks to far more than its header promises; export the scan anew")
    if len(data) < size:
        raise ScanError(path, f"is truncated: {len(data)} of {size} bytes; copy it again")
    return header, np.ndarray(shape, dtype, buffer=data, offset=offset, order="F")


def _header(path: Path, file) -> nib.Nifti1Header:
    first = file.read(544)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(first):
            header = kind(first[: kind.sizeof_hdr], check=False)
            _check_pixdim(path, header)
            header.check_fix(UNHEARD)
            return header
    raise ScanError(path, look_of(first[:64]))


def _check_pixdim(path: Path, header: nib.Nifti1Header) -> None:
    """Raise a ScanError if nothing gives the spacing; nibabel would take 0 for 1 mm, and leave out a sign."""
    pixdim = header["pixdim"][1:4].astype(float)
    if header["sform_code"] <= 0 and not (pixdim > 0).all():
        raise ScanError(path, f"its pixdim {pixdim.round(3).tolist()} is no spacing in mm; mend its header")


def _layout(path: Path, header: nib.Nifti1Header) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and offset of the voxels, believed only if they are possible."""
    shape = tuple(int(side) for side in header.get_data_shape())
    dtype = header.get_data_dtype()
    check_promise(path, shape, dtype)
    offset = int(header["vox_offset"])
    if not 0 <= offset <= 2**24:
        raise ScanError(path, f"its header puts the voxels at byte {offset}")
    return shape[:3], dtype, max(offset, header.sizeof_hdr)


def _disagreements(header: nib.Nifti1Header, affine: np.ndarray) -> list[str]:
    """Where the header's ways to say the geometry do not agree, or say nothing."""
    warnings = []
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        warnings.append("orientation unknown (sform and qform codes are 0); read as left-anterior-superior")
    zooms, sizes = np.abs(header.get_zooms()[:3]).astype(float), voxel_sizes(affine)
    if not np.allclose(zooms, sizes, rtol=0.01):
        warnings.append(
            f"pixdim {zooms.round(3).tolist()} mm and affine {sizes.round(3).tolist()} mm disagree; used affine"
        )
    if header["sform_code"] > 0 and header["qform_code"] > 0 and np.isfinite(affine).all() and sizes.all():
        warnings += _turned(_qform_axes(header), affine[:3, :3] / sizes)
    return warnings


def _qform_axes(header: nib.Nifti1Header) -> np.ndarray | None:
    """Unit vectors along the voxels' axes, as columns, by the qform; None if it is no rotation.

    nibabel refuses quaternions that are a rounding longer than 1.
    """
    bcd = [float(header[f"quatern_{name}"]) for name in "bcd"]
    squares = float(np.dot(bcd, bcd))
    if not squares < 1.001:
        return None
    axes = quat2mat([np.sqrt(max(0.0, 1 - squares)), *bcd])
    return axes * (1, 1, -1 if header["pixdim"][0] < 0 else 1)


def _turned(qform: np.ndarray | None, sform: np.ndarray) -> list[str]:
    """What is to be said of two ways to lie, each the unit vectors along the voxels' axes as columns."""
    if qform is None:
        return ["qform is no rotation; used sform"]
    left, _, right = np.linalg.svd(sform)
    cosines = ((left @ right) * qform).sum(0)  # a qform cannot be sheared, so it holds the nearest that is not
    degrees = float(np.rad2deg(np.arccos(np.clip(cosines, -1, 1))).max())
    if degrees <= TURNED_DEGREES:
        return []
    one, other = (
        ", ".join(AXES.get(code, "nowhere") for code in aff2axcodes(_affine(axes))) for axes in (qform, sform)
    )
    how = f" by {degrees:.1f} degrees" if one == other else f": the voxels' axes point {one}, or {other}"
    return [f"qform and sform disagree{how}; used sform"]


def _affine(axes: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes
    return affine


def _scale(header: nib.Nifti1Header) -> tuple[tuple[float, float], list[str]]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope != 0 and np.isfinite([slope, intercept]).all():
        return (slope, intercept), []
    none = not np.isinf(slope) and (intercept == 0 or np.isnan(intercept))  # NIfTI's ways to say "no scale"
    return (1.0, 0.0), [] if none else [f"scl_slope {slope:g}, scl_inter {intercept:g} are no scale, and ignored"]
