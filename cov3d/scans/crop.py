"""A scan cut to the box of its lungs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cov3d.config import Preprocessing
from cov3d.forms import WINDOW
from cov3d.scans.body import Spacing
from cov3d.scans.lungs import cut_off, find_lungs
from cov3d.scans.scan import Scan

# The lungs are looked for in a scan of so many voxels along D, H, W.
LOOKED_AT = (96, 128, 128)
MARGIN = 0.04  # of the box's length, at each of its ends
NO_LUNGS = "no lungs found"


def window_of(scan: Scan, settings: Preprocessing) -> tuple[float, float]:
    """HU of black and white in a tensor of the scan; grey slices were windowed as COV19-CT-DB's, as far as can be told."""
    return WINDOW if scan.unit == "grey" else (settings.window_low, settings.window_high)


def crop_to_lungs(scan: Scan, small: np.ndarray, window: tuple[float, float]) -> Scan:
    """The scan cut to the box of its lungs and a margin; the whole scan, and a warning, if none are found.

    It is said, too, if the lungs go on beyond the scan.

    ``small`` is the whole scan as uint8 ``(D, H, W)`` of any size, in which the lungs are looked for.
    """
    lungs = find_lungs(small, _spacing(scan, small.shape), window)
    if lungs is None:
        return replace(
            scan, warnings=(*scan.warnings, f"{NO_LUNGS}, so the scan is not cut to them; is this a chest CT?")
        )
    ends = [_widened(part, n) for part, n in zip(lungs.box, small.shape, strict=True)]
    first, last = scan.positions[0], scan.positions[-1]
    place = (scan.positions - first) / max(last - first, 1e-9)
    depth = np.flatnonzero((place >= ends[0][0]) & (place <= ends[0][1]))
    sides = scan.slices[0].shape
    rows, columns = (slice(int(a * n), int(np.ceil(b * n))) for (a, b), n in zip(ends[1:], sides, strict=True))
    return replace(
        scan,
        slices=Cropped(scan.slices, int(depth[0]), int(depth[-1]) + 1, rows, columns),
        positions=scan.positions[depth[0] : depth[-1] + 1],
        warnings=(*scan.warnings, *cut_off(lungs.mask)),
    )


@dataclass(frozen=True)
class Cropped(Sequence):
    """A part of a volume, its slices still decoded when asked for."""

    slices: Sequence[np.ndarray]
    first: int
    end: int
    rows: slice
    columns: slice

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index):
        return self.slices[range(self.first, self.end)[index]][self.rows, self.columns]


def _spacing(scan: Scan, shape: Sequence[int]) -> Spacing | None:
    """mm between the voxels of the small volume."""
    if scan.spacing is None:
        return None
    full = (len(scan.slices), *scan.slices[0].shape)
    depth, height, width = (mm * n / small for mm, n, small in zip(scan.spacing, full, shape, strict=True))
    return depth, height, width


def _widened(part: slice, length: int) -> tuple[float, float]:
    """The ends of a part with its margin, as shares of the whole."""
    margin = MARGIN * (part.stop - part.start)
    return max(0.0, (part.start - margin) / length), min(1.0, (part.stop + margin) / length)
