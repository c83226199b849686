"""Where a prepared tensor lies in its scan, and masks brought back from the one to the other.

The way back undoes what :mod:`cov3d.scans.preprocess` does: linear interpolation at the middles of the scan's voxels.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cov3d.commit import commit
from cov3d.config import Preprocessing
from cov3d.scans.crop import Cropped, window_of
from cov3d.scans.scan import Scan, Selection

COMPRESSION = 4  # of zlib
SCANNER = 1  # NIfTI's code for the scanner's own coordinates
# Columns, rows and slices of pictures, taken for 1 mm, to mm Right, Anterior, Superior.
PICTURES = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 0.0, 0.0, 1.0))

Part = tuple[int, int]  # where it begins, and the first beyond its end


@dataclass(frozen=True)
class Frame:
    """How a tensor ``(D, H, W)`` lies in the canonical scan that it was made from.

    ``shape`` is that of the whole scan in voxels, the slices that could not be read among them; ``box`` the part along each
    axis that became the tensor. ``positions`` ``(n,)`` are the places of all slices along the body, in any unit, and ``span``
    those of the first and the last that went into the tensor. ``spacing`` is in mm along D, H, W, and ``window`` in HU from
    black to white. ``affine`` takes voxels as stored to mm Right, Anterior, Superior; pictures have none.
    """

    shape: tuple[int, int, int]
    box: tuple[Part, Part, Part]
    positions: tuple[float, ...]
    span: tuple[float, float]
    window: tuple[float, float]
    spacing: tuple[float, float, float] | None = None
    affine: tuple[tuple[float, ...], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Frame:
        """From what :meth:`to_dict` gave, JSON's lists being tuples again."""
        return cls(**{name: _frozen(value) for name, value in values.items()})

    @property
    def thickness(self) -> np.ndarray:
        """What each slice stands for along the body ``(n,)``: mm, or slices where mm are not known."""
        slice_mm = self.spacing[0] if self.spacing else 1.0
        if len(self.positions) < 2:
            return np.array([slice_mm])
        return np.gradient(self.positions) * slice_mm / np.median(np.diff(self.positions))

    def tensor_spacing(self, shape: Sequence[int]) -> tuple[float, float, float] | None:
        """mm between the voxels of a tensor ``(D, H, W)``; None where the scan's are not known."""
        if self.spacing is None:
            return None
        (first, end), *sides = self.box
        lengths = [
            self.thickness[first:end].sum(),
            *((b - a) * mm for (a, b), mm in zip(sides, self.spacing[1:], strict=True)),
        ]
        depth, height, width = (float(length / n) for length, n in zip(lengths, shape, strict=True))
        return depth, height, width


def frame_of(scan: Scan, prepared: Scan, settings: Preprocessing) -> Frame:
    """Where a tensor lies in ``scan``: ``prepared`` is what :func:`cov3d.scans.preprocess.prepare` gave back beside it.

    Pictures lie at their numbers in the folder's order, so that those that were left out when it was read have slices, too.
    """
    shape, box = _box(scan, prepared)
    positions = np.asarray(scan.positions, float)
    if scan.affine is None:
        count = max(scan.listed, int(positions[-1]) + 1)
        first, end = (0 if box[0][0] == 0 else int(positions[box[0][0]])), int(positions[box[0][1] - 1]) + 1
        box = ((first, count if box[0][1] == len(positions) else end), *box[1:])
        positions, shape = np.arange(count, dtype=float), (count, *shape[1:])
    return Frame(
        shape=shape,
        box=box,
        positions=tuple(positions.tolist()),
        span=(float(prepared.positions[0]), float(prepared.positions[-1])),
        window=window_of(scan, settings),
        spacing=scan.spacing,
        affine=None if scan.affine is None else _frozen(np.asarray(scan.affine, float).tolist()),
    )


def _box(scan: Scan, prepared: Scan) -> tuple[tuple[int, int, int], tuple[Part, Part, Part]]:
    """The shape of a scan and the part of it that was prepared; slices left out at an end of it lie in it."""
    kept: Sequence[int] = range(len(scan.slices))
    cut, slices = prepared.slices, prepared.slices
    if isinstance(cut, Cropped):
        slices = cut.slices
    if isinstance(slices, Selection) and slices is not scan.slices:
        kept = slices.indices
    shape = (len(scan.slices), *scan.slices[kept[0]].shape)
    if not isinstance(cut, Cropped):
        return shape, ((0, shape[0]), (0, shape[1]), (0, shape[2]))
    first = 0 if cut.first == 0 else kept[cut.first]
    end = shape[0] if cut.end == len(kept) else kept[cut.end - 1] + 1
    return shape, ((first, end), (cut.rows.start, cut.rows.stop), (cut.columns.start, cut.columns.stop))


def planes(probability: np.ndarray, frame: Frame) -> Iterator[np.ndarray]:
    """A tensor's probabilities ``(D, H, W)`` at the voxels of its scan, slice by slice: float32 ``(H, W)``, 0 outside the box.

    Between the middles of the tensor's voxels they are interpolated linearly, and beyond them they stay the same.
    """
    (first, end), (top, bottom), (left, right) = frame.box
    rows, columns = _between(bottom - top, probability.shape[1]), _between(right - left, probability.shape[2])
    drawn: dict[int, np.ndarray] = {}  # the two slices of the tensor that are looked at
    for index, place in enumerate(_places(frame, len(probability))):
        plane = np.zeros(frame.shape[1:], np.float32)
        if first <= index < end:
            below = min(int(place), len(probability) - 1)
            wanted = (below, min(below + 1, len(probability) - 1))
            drawn = {k: drawn[k] if k in drawn else _drawn(probability[k], rows, columns) for k in wanted}
            share = np.float32(place - below)
            part = plane[top:bottom, left:right]
            np.multiply(drawn[wanted[0]], 1 - share, out=part)
            if share:
                part += share * drawn[wanted[1]]
        yield plane


def restore(probability: np.ndarray, frame: Frame) -> np.ndarray:
    """A tensor's probabilities ``(D, H, W)`` at the voxels of its scan, float32 ``(n, H, W)``; see :func:`planes`."""
    whole = np.empty(frame.shape, np.float32)
    for index, plane in enumerate(planes(probability, frame)):
        whole[index] = plane
    return whole


def write_mask(path: Path, mask: np.ndarray, frame: Frame) -> Path:
    """Write a mask of a canonical scan, bool ``(n, H, W)``, as uint8 ``.nii.gz`` whose voxels lie as the scan's are stored.

    Its shape and affine are those of the scan's file, so that it lies on the scan in any viewer; a DICOM series counts as
    columns, rows, slices from head to feet or from feet to head. Same mask, same bytes.

    Raises:
        Cov3dError: the file cannot be written.
    """
    import nibabel
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    from cov3d.scans.volume import CANONICAL

    affine = np.array(frame.affine or PICTURES)
    turn = ornt_transform(axcodes2ornt(CANONICAL), io_orientation(affine))
    image = nibabel.Nifti1Image(apply_orientation(mask.view(np.uint8), turn), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)  # of sheared axes the nearest that are not
    data = gzip.compress(image.to_bytes(), COMPRESSION, mtime=0)
    return commit(path, lambda file: file.write(data))


def _places(frame: Frame, depth: int) -> np.ndarray:
    """Where each slice of the scan lies among a tensor's ``depth`` slices ``(n,)``: those are evenly laid over the span."""
    first, last = frame.span
    if last == first:  # one slice became all of them; its place is in their middle
        return np.full(frame.shape[0], (depth - 1) / 2)
    places = (np.array(frame.positions) - first) / (last - first) * (depth - 1)
    return places.clip(0, depth - 1)


def _between(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the middles of ``count`` voxels, over which ``size`` were laid: the ones before and after, and the share of these."""
    places = ((np.arange(count) + 0.5) * size / count - 0.5).clip(0, size - 1)
    before = places.astype(int)
    return before, np.minimum(before + 1, size - 1), (places - before).astype(np.float32)


def _drawn(plane: np.ndarray, rows: tuple[np.ndarray, ...], columns: tuple[np.ndarray, ...]) -> np.ndarray:
    """A tensor's slice at the middles of a scan's pixels."""
    before, after, share = columns
    wide = plane[:, before]
    wide += (plane[:, after] - wide) * share
    before, after, share = rows
    whole = wide[before]
    whole += (wide[after] - whole) * share[:, None]
    return whole


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
