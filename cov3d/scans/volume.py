"""A volume in one file: its voxels turned to canonical orientation. What NIfTI, MetaImage and NRRD have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from cov3d.config import Reading
from cov3d.console import plural
from cov3d.errors import ScanError
from cov3d.scans.scan import GAP, LARGEST_SIDE, MOST_SLICES, Flaw, Scan
from cov3d.scans.value_range import measure, unit_of

CANONICAL = ("I", "P", "L")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # from the axes of DICOM and ITK to nibabel's
LARGEST_VOLUME = 4 * 2**30  # bytes; a header of 50 bytes can promise any number
# In-plane and between slices; outside, the header is wrong.
SPACING_MM = (0.1, 20.0)
NOT_FINITE_SHARE = 0.01
SQUARE = 1.5  # longer over shorter side of a pixel; of axial slices, pixels are square
SHEAR_DEGREES = 1.0
OBLIQUE_DEGREES = 20.0


@dataclass(frozen=True)
class Volume(Sequence):
    """A stored volume ``(D, H, W)`` whose slices come out scaled, as float32; 8-bit grey comes out as it is."""

    stored: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    as_stored: bool = False

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index):
        if self.as_stored:
            return self.stored[index]
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is counted as such
            return self.stored[index].astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)


def check_promise(path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise a ScanError if a header promises voxels that no chest CT has, before any of them is read."""
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise ScanError(path, f"expected a volume of three dimensions, got {tuple(shape)}")
    if min(shape) < 1 or max(shape) > max(LARGEST_SIDE, MOST_SLICES):
        raise ScanError(path, f"its header promises {tuple(shape)} voxels, which no chest CT has")
    if dtype.kind not in "iuf":
        raise ScanError(path, f"its voxels are {dtype}, not HU; export the CT itself")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > LARGEST_VOLUME:
        most = LARGEST_VOLUME >> 30
        raise ScanError(path, f"its header promises {tuple(shape)} voxels of {dtype}, more than {most} GiB")


def volume_scan(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray,
    reading: Reading,
    scale: tuple[float, float] = (1.0, 0.0),
    warnings: Sequence[str] = (),
) -> Scan:
    """A scan from voxels ``(i, j, k)`` as stored, the affine that takes them to mm Right, Anterior, Superior, and a scale.

    Raises:
        ScanError: an affine or spacing that cannot be, or more than one voxel in a hundred not finite.
    """
    flaws, oblique = check_axes(path, affine)
    turn = canonical_turn(affine)
    sizes = voxel_sizes(affine)
    order = np.argsort(turn[:, 0])
    depth, height, width = (float(mm) for mm in sizes[order])
    if flaws:  # of sheared axes, slices are as far apart as along their normal
        depth *= _sine(affine[:3, order])
    check_spacing(path, (depth, height, width))
    volume = Volume(apply_orientation(stored, turn), *scale)
    values = measure(volume)
    if values.not_finite > NOT_FINITE_SHARE * values.count:
        raise ScanError(path, f"{values.not_finite} of {values.count} voxels are NaN or infinite")
    holes = [f"{plural(values.not_finite, 'voxel')} NaN or infinite, made black"] if values.not_finite else []
    unit = unit_of(values, reading)
    if unit.name == "grey":
        plain = volume.stored.dtype == np.uint8 and scale == (1.0, 0.0)
        volume = Volume(volume.stored, scale[0] * unit.factor, scale[1] * unit.factor, as_stored=plain)
    return Scan(
        path,
        volume,
        unit=unit.name,
        spacing=(depth, height, width),
        warnings=(*warnings, *oblique, *_plane(height, width), *holes, *unit.warnings),
        flaws=flaws,
        reading=reading,
        affine=affine,
    )


def canonical_turn(affine: np.ndarray) -> np.ndarray:
    """nibabel's orientation transform from an affine's voxels to canonical ones, along the nearest axes."""
    return ornt_transform(io_orientation(affine), axcodes2ornt(CANONICAL))


def check_axes(path: Path, affine: np.ndarray) -> tuple[tuple[Flaw, ...], tuple[str, ...]]:
    """What is wrong with an affine's axes, and what is to be said of them.

    Raises:
        ScanError: they do not span space.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ScanError(path, "its affine is singular, so nobody can say how the patient lies")
    directions = affine[:3, :3] / voxel_sizes(affine)
    skew = np.rad2deg(np.arcsin(np.clip(np.abs(directions.T @ directions - np.eye(3)).max(), 0, 1)))
    oblique = np.rad2deg(np.arccos(np.clip(np.abs(directions).max(0).min(), 0, 1)))
    tilt = Flaw(GAP, f"its axes are {skew:.1f} degrees off right angles (a tilted gantry?)")
    lies = f"the scan lies {oblique:.0f} degrees off the patient's axes; read along the nearest"
    return (tilt,) if skew > SHEAR_DEGREES else (), (lies,) if oblique > OBLIQUE_DEGREES else ()


def _sine(axes: np.ndarray) -> float:
    """The sine of the angle between the first of three axes, columns of ``axes``, and the plane of the others."""
    first, second, third = (axes / np.linalg.norm(axes, axis=0)).T
    normal = np.cross(second, third)
    return float(abs(first @ normal) / np.linalg.norm(normal))


def _plane(height: float, width: float) -> list[str]:
    """What is to be said of the plane in which a volume was cut: as axial slices it is well resolved in their plane only."""
    if max(height, width) <= SQUARE * min(height, width):
        return []
    plane = "coronal" if height > width else "sagittal"
    return [f"axial pixels of {height:.3g}×{width:.3g} mm: a {plane} stack? Give the axial slices it was made from"]


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Raise a ScanError if distances of voxels, in mm, cannot be those of a chest CT."""
    if not all(SPACING_MM[0] <= mm <= SPACING_MM[1] for mm in spacing):
        raise ScanError(path, f"spacing {tuple(round(mm, 4) for mm in spacing)} mm is not plausible; mend its header")
