"""The patient's body in a chest CT: what the skin encloses, told from the air around.

The picture's edges may cut it, a table may touch it, and black may be another HU than air's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Window = tuple[float, float]
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]

ASSUMED = (300, 350, 350)  # mm that a scan of unknown spacing covers
BODIES = ((2, 4000), (100, 700), (100, 700))  # mm; a spacing that gives less or more is none

AIR, TISSUE = -1000, -300  # HU; ground glass is below TISSUE, consolidation above
GAS = 45  # HU above the air around the patient; lungs, even emphysematous ones, are lighter
LEAST_WALLS = 0.03  # of the volume is body

IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Body:
    """The patient: HU ``(D, H, W)``, mm of a voxel, what the skin encloses, and HU below which that is gas, not lung."""

    hu: np.ndarray
    mm: Spacing
    inside: np.ndarray
    gas: float

    @classmethod
    def of(cls, grey: np.ndarray, shape: Sequence[int], spacing: Spacing | None, window: Window) -> Body:
        """``shape`` is that of the volume before voxels were averaged or left out."""
        low, high = window
        hu = grey * np.float32((high - low) / 255) + np.float32(low)
        lengths = [mm * n for mm, n in zip(spacing or (0, 0, 0), shape, strict=True)]
        if not all(least < length < most for length, (least, most) in zip(lengths, BODIES, strict=True)):
            lengths = list(ASSUMED)
        d, h, w = (length / n for length, n in zip(lengths, hu.shape, strict=True))
        outside = _outside(hu, _walls(hu, max(h, w)))
        gas = _air_around(hu[outside & (hu < TISSUE)], low) + GAS
        return cls(hu, (d, h, w), ~outside, gas if low < AIR + GAS else -np.inf)

    def pixels(self, mm: float) -> int:
        """How many pixels in plane are so long; at least one."""
        return max(1, round(mm / max(self.mm[1:])))


def _walls(hu: np.ndarray, pixel: float) -> np.ndarray:
    """The largest piece of tissue; what hangs on it by less than about 5 mm, such as the table's shell, is not of it."""
    tissue = hu > TISSUE
    thin = round(3 / pixel)
    core = ndimage.binary_erosion(tissue, IN_PLANE, thin, border_value=1) if thin else tissue
    labels, count = ndimage.label(core)
    sizes = sizes_of(labels, count)
    largest = labels == (sizes.argmax() if sizes.max() > LEAST_WALLS * hu.size else -1)
    return ndimage.binary_dilation(largest, IN_PLANE, thin + 1, mask=tissue) if thin else largest


def _outside(hu: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """What the body's walls do not enclose in a slice.

    What is open to air at the picture's edge is outside; what is not has been cut open there. Lungs of much emphysema that
    are cut have some voxels as dark as air, but not most, and more area than what lies around a body for as much edge.
    """
    air = _air_at_edges(hu)
    smooth = ndimage.uniform_filter(hu, (1, 3, 3))
    labels, count = ndimage.label(smooth < air + 60)
    open_air = _edges((sizes_of(labels, count) > 0.003 * hu.size)[labels])
    labels, count = ndimage.label(~walls, IN_PLANE)
    edges, areas = _edges(labels), sizes_of(labels, count)
    opened = sizes_of(edges[open_air], count) > 0
    flat = sizes_of(edges, count) ** 2 > 4 * areas
    black = sizes_of(labels[smooth < air + 30], count) > 0.5 * areas
    return (opened & (flat | black))[labels] | (not walls.any())


def _air_at_edges(hu: np.ndarray) -> float:
    """HU of air at the picture's edges; −∞ where what is dark there is lung."""
    edges = _edges(hu)
    dark = edges[edges < TISSUE]
    level = float(np.percentile(dark, 10)) if len(dark) else AIR
    return max(level, AIR) if level < AIR + 30 or len(dark) > 0.75 * len(edges) else -np.inf


def _air_around(air: np.ndarray, low: float) -> float:
    """HU of air, which pictures of another window than they are said to be have elsewhere; padding does not count."""
    lit = air[air > low]
    air = lit if len(lit) > 0.2 * len(air) else air
    return float(np.percentile(air, 25)) if len(air) else AIR


def sizes_of(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each label; none of label 0."""
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return sizes


def box_of(mask: np.ndarray) -> Box:
    """The smallest box that holds all of a mask, which must not be empty."""
    d, h, w = (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return slice(int(d[0]), int(d[-1]) + 1), slice(int(h[0]), int(h[-1]) + 1), slice(int(w[0]), int(w[-1]) + 1)


def _edges(volume: np.ndarray) -> np.ndarray:
    """The voxels on the edges in plane, flat."""
    return np.concatenate([volume[:, [0, -1]].ravel(), volume[:, 1:-1, [0, -1]].ravel()])
