"""A scan's lesion mask: read beside the scan, and made a tensor by the scan's own geometry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from cov3d.config import Preprocessing, Reading, parse_labels
from cov3d.console import few, plural
from cov3d.errors import ScanError
from cov3d.scans.boundary import boundary
from cov3d.scans.crop import Cropped
from cov3d.scans.read import read, scan_files
from cov3d.scans.scan import Scan, Selection, SliceError
from cov3d.scans.slices import slice_files
from cov3d.scans.spline import add_band

EMPTY = "its mask is empty"
TOO_SMALL = "its lesions are too small to be seen at this size"
LESION = 255  # of a cached mask
PICTURES_LESION = 255  # pictures of masks are black and white
APART = 0.25  # voxels by which the corners of a mask and of its scan may differ: headers are rounded
HALF = 0.5 - 1e-5  # of a voxel; sums of float32 are a rounding off
SLICES_AT_ONCE = 16


# Reading


def read_mask(path: str | Path, scan: Scan, labels: str = "") -> np.ndarray:
    """Which voxels of a scan are lesion: bool ``(n, H, W)`` in canonical axes, of all slices that ``scan`` was read with.

    A mask is a NIfTI, MetaImage or NRRD volume, stored in any orientation; of pictures, also a folder of PNG slices, one
    for each picture of the scan. Its voxels are 0 or 1 (in pictures also 0 or 255); with ``labels``, as ``1,3``, those
    values are lesion, and all others background.

    Raises:
        ScanError: it cannot be read; it has another shape, lies elsewhere, or holds other values.
        SettingError: labels that are no numbers.
    """
    path, wanted = Path(path), parse_labels(labels)
    with boundary(path):
        pictures = path.is_dir() and bool(slice_files(path))
    mask = read(path, Reading() if pictures else Reading(range="hu", allow_gaps=True))
    try:
        voxels = _lesions(mask, wanted)
    except SliceError as error:
        raise ScanError(path, f"{error.cause}; a mask needs all of its slices") from error
    return _placed(voxels, mask, scan)


def _lesions(mask: Scan, labels: Sequence[int]) -> np.ndarray:
    """Which voxels of a mask are lesion, ``(n, H, W)``."""
    lesions = np.empty((len(mask.slices), *mask.slices[0].shape), bool)
    ends: set[float] = set()  # least and most of each slice's lesion
    for index, pixels in enumerate(mask.slices):
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ScanError(mask.source, "holds values that are NaN or infinite; export the mask again")
        lesions[index] = np.isin(pixels, labels) if labels else pixels != 0
        if not labels and lesions[index].any():
            inside = pixels[lesions[index]]
            ends |= {float(inside.min()), float(inside.max())}
    allowed: list[set[float]] = [{1.0}, {float(PICTURES_LESION)}] if mask.affine is None else [{1.0}]
    if not any(ends <= values for values in allowed):
        raise ScanError(mask.source, _other_values(mask))
    return lesions


def _other_values(mask: Scan) -> str:
    values = sorted(set().union(*(np.unique(pixels).tolist() for pixels in mask.slices)))
    known = "0 and 1, or 0 and 255" if mask.affine is None else "0 and 1"
    found = few([f"{value:g}" for value in values])
    jpeg = "; JPEG changes values, so export it as PNG" if mask.affine is None and _is_jpeg(mask) else ""
    return f"holds the values {found}, expected {known}{jpeg}; else say with --mask-labels which are lesion, as 1,3"


def _is_jpeg(mask: Scan) -> bool:
    return any(file.suffix.lower() in (".jpg", ".jpeg") for file in scan_files(mask.source))


# Its place


def _placed(voxels: np.ndarray, mask: Scan, scan: Scan) -> np.ndarray:
    """The voxels of a mask if they are those of the scan; of pictures that lost slices, those that are left."""
    if mask.affine is None:
        _check_pictures(mask, scan)
    if scan.affine is None and len(voxels) == len(scan_files(scan.source)):  # slices that were left out have masks, too
        voxels = voxels[scan.positions.astype(int)]
    shape = (len(scan.slices), *scan.slices[0].shape)
    if voxels.shape != shape:
        advice = "give the mask in the scan's own geometry, with all of its slices"
        lie = ""
        if mask.affine is not None and scan.affine is not None:
            affines = (_short(canonical_affine(part, size)) for part, size in ((mask, voxels.shape), (scan, shape)))
            lie = " (canonical affines {} and {})".format(*affines)
        raise ScanError(mask.source, f"is of {voxels.shape} voxels (D, H, W), its scan of {shape}{lie}; {advice}")
    if mask.affine is not None and scan.affine is not None:
        _check_place(mask, scan, shape)
    return voxels


def _check_pictures(mask: Scan, scan: Scan) -> None:
    if scan.affine is not None:
        raise ScanError(
            mask.source, "is pictures, which lie nowhere, and its scan lies in the patient; give it as a volume"
        )
    lost = len(scan_files(mask.source)) - len(mask.slices)
    if lost:
        text = f"{plural(lost, 'slice')} unreadable, or of another size than the others"
        raise ScanError(mask.source, f"{text}; a mask needs all of its slices")


def _check_place(mask: Scan, scan: Scan, shape: tuple[int, ...]) -> None:
    """Raise a ScanError unless a mask's corners lie on its scan's."""
    here, there = canonical_affine(scan, shape), canonical_affine(mask, shape)
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in shape))]).T
    apart = np.abs(np.linalg.solve(here, there @ corners) - corners).max()
    if not apart < APART:
        text = f"lies elsewhere than its scan, by up to {apart:.3g} voxels: its canonical affine is {_short(there)}"
        advice = "give the mask in the scan's own geometry"
        raise ScanError(mask.source, f"{text}, the scan's {_short(here)} (to mm Right, Anterior, Superior); {advice}")


def canonical_affine(scan: Scan, shape: Sequence[int]) -> np.ndarray:
    """From the indices (d, h, w) of a scan's canonical voxels ``shape`` to mm Right, Anterior, Superior: ``(4, 4)``."""
    from nibabel.orientations import inv_ornt_aff

    from cov3d.scans.volume import canonical_turn

    assert scan.affine is not None  # of pictures nobody asks
    turn = canonical_turn(scan.affine)
    stored = [shape[int(axis)] for axis in turn[:, 0]]
    return scan.affine @ inv_ornt_aff(turn, stored)


def _short(affine: np.ndarray) -> str:
    rows = (" ".join(f"{value + 0:.4g}" for value in row) for row in affine[:3].round(3))
    return f"[{'; '.join(rows)}]"


# To a tensor


def prepare_mask(mask: np.ndarray, prepared: Scan, settings: Preprocessing) -> np.ndarray:
    """A mask ``(n, H, W)`` as uint8 ``(1, D, H, W)``, 0 or 255, that lies on its scan's tensor.

    It is cut as the scan was. A voxel of the tensor is lesion if at least half of what it covers is: in plane its half-pixel
    area, which is Pillow's geometry; along depth as much as the spline's places are apart. ``prepared`` is the scan that
    :func:`cov3d.scans.preprocess.prepare` returns beside the tensor.
    """
    depth, height, width = settings.shape
    mask = cut_alike(mask, prepared.slices)
    along = depth_areas(prepared.positions, depth)
    down, across = (
        csr_array(areas(np.arange(n + 1), np.linspace(0, n, m + 1)))
        for n, m in zip(mask.shape[1:], (height, width), strict=True)
    )
    volume = np.zeros((depth, height * width), np.float32)
    for first in range(0, len(mask), SLICES_AT_ONCE):
        band = mask[first : first + SLICES_AT_ONCE]
        if band.any():
            add_band(volume, along[:, first : first + len(band)], _shrunk(band, down, across))
    return np.where(volume >= HALF, np.uint8(LESION), np.uint8(0)).reshape(1, depth, height, width)


def mask_remarks(mask: np.ndarray, tensor: np.ndarray) -> tuple[str, ...]:
    """What is to be said of a mask, and of the tensor that it became."""
    if not mask.any():
        return (EMPTY,)
    return () if tensor.any() else (TOO_SMALL,)


def cut_alike(volume: np.ndarray, slices: Sequence[np.ndarray]) -> np.ndarray:
    """A volume ``(n, H, W)`` of the whole scan, cut as the scan's slices were."""
    if isinstance(slices, Selection):
        return cut_alike(volume, slices.items)[list(slices.indices)]
    if isinstance(slices, Cropped):
        return cut_alike(volume, slices.slices)[slices.first : slices.end, slices.rows, slices.columns]
    return volume


def depth_areas(positions: np.ndarray, depth: int) -> np.ndarray:
    """How much each of n slices has of each of ``depth`` places, ``(depth, n)``; a place's shares add up to 1.

    The places are those of :func:`cov3d.scans.spline.spline_matrix`. A slice reaches half-way to its neighbours.
    """
    if len(positions) == 1:
        return np.ones((depth, 1), np.float32)
    between = (positions[:-1] + positions[1:]) / 2
    edges = np.array([2 * positions[0] - between[0], *between, 2 * positions[-1] - between[-1]])
    if depth == 1:
        return areas(edges, edges[:2])  # the first slice, as in the volume
    places = np.linspace(positions[0], positions[-1], depth)
    half = (places[1] - places[0]) / 2
    return areas(edges, np.append(places - half, places[-1] + half))


def areas(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How much each cell between the edges ``source`` ``(n + 1,)`` has of each between ``target`` ``(m + 1,)``: ``(m, n)``.

    Rows add up to 1; what lies beyond the source counts nowhere.
    """
    begin, end = target[:-1, None], target[1:, None]
    shared = np.clip(np.minimum(end, source[1:]) - np.maximum(begin, source[:-1]), 0, None)
    return (shared / shared.sum(1, keepdims=True)).astype(np.float32)


def _shrunk(band: np.ndarray, down: csr_array, across: csr_array) -> np.ndarray:
    """Slices ``(k, H, W)`` as shares of lesion in a tensor's pixels ``(k, h * w)``."""
    count, height, width = band.shape
    wide = across @ band.reshape(-1, width).T.astype(np.float32)  # (w, k * H)
    tall = down @ wide.reshape(-1, count, height).transpose(2, 1, 0).reshape(height, -1)
    return tall.reshape(-1, count, len(wide)).transpose(1, 0, 2).reshape(count, -1)
