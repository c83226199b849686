"""Both lungs of a chest CT, found without learned weights: what is as dark as lung and enclosed by the body.

Air around the patient, table, airways and bowel gas are set aside by place, shape and darkness; vessels and lesions are
closed. Where a lung is white its edge does not show: it is taken from the ribs behind it, or from the other lung.
The patient may lie on the back, the belly or a side, head or feet first, and be cut off by the picture's edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cov3d.forms import WINDOW
from cov3d.scans.body import AIR, IN_PLANE, TISSUE, Body, Box, Spacing, Window, box_of, sizes_of
from cov3d.scans.white_lungs import with_white_parts

SEARCHED = (96, 128, 128)  # voxels along each axis at most; more are averaged
GLANCED = (32, 56, 56)  # about so many are enough to tell whether there are lungs

# Area in an end slice, of the largest, above which lungs do not end there. At a glance it is at most .39 in the first and
# .11 in the last slice of 450 drawn chests, .01 in real ones. Without the upper third it is .87 and more, in real ones .93;
# without the lower one .53 and more, in real ones .49, but .40 in one critical chest of the 450.
GOES_ON = 0.45

# Less is the bases in an abdomen's first slices, bowel, or noise.
LEAST_OF_BODY = 0.03  # of its volume
LEAST_OF_SLICE, LEAST_OF_SCAN = 0.12, 0.15  # of the body's area, in so many of the slices
LEAST_IN_DEPTH = 0.2  # of the lungs themselves is not on their surface
SECOND_LUNG, ISLAND = 0.1, 0.002  # of the larger lung


@dataclass(frozen=True, eq=False)
class Lungs:
    """Where the lungs are.

    ``mask`` is bool ``(D, H, W)``: both lungs, or the one that is there, with vessels and lesions. ``box`` holds all of it
    and cuts it out: ``volume[lungs.box]``.
    """

    mask: np.ndarray
    box: Box


def find_lungs(grey: np.ndarray, spacing: Spacing | None = None, window: Window = WINDOW) -> Lungs | None:
    """Find the lungs; None where there are none, or no more than an abdomen's first slices show.

    ``grey`` is uint8 ``(D, H, W)``, 0…255 for ``window`` in HU. ``spacing`` is in mm along D, H, W; without it, or if it
    cannot be a body's, 300 mm of body and a field of view of 350 mm are assumed. Little hangs on it: how far gaps close.
    """
    steps = [-(-n // most) for n, most in zip(grey.shape, SEARCHED, strict=True)]
    body = Body.of(_block_means(grey, steps), grey.shape, spacing, window)
    mask = _aired(body)
    if mask is None:
        return None
    mask = with_white_parts(body, mask)
    for axis, step in enumerate(steps):
        mask = mask.repeat(step, axis) if step > 1 else mask
    mask = mask[tuple(map(slice, grey.shape))]
    return Lungs(mask, box_of(mask))


def glance_at_lungs(grey: np.ndarray, window: Window = WINDOW) -> np.ndarray | None:
    """The lungs of uint8 ``(D, H, W)`` as far as there is air in them, in few voxels, bool; None where there are none.

    A glance takes some 10 ms whatever the volume's size.
    """
    steps = [max(1, round(n / about)) for n, about in zip(grey.shape, GLANCED, strict=True)]
    glance = grey[tuple(slice(step // 2, None, step) for step in steps)]
    return _aired(Body.of(glance, grey.shape, None, window))


def cut_off(mask: np.ndarray) -> list[str]:
    """A warning if lungs ``(D, H, W)`` do not end within the slices: apices or bases are missing."""
    areas = np.count_nonzero(mask, axis=(1, 2))
    if len(areas) < 3:  # there is no middle to compare with
        return []
    ends = [name for name, area in (("first", areas[0]), ("last", areas[-1])) if area > GOES_ON * areas.max()]
    return [f"the lungs go on beyond the {' and the '.join(ends)} slice: is the scan cut off?"] if ends else []


def _aired(body: Body) -> np.ndarray | None:
    """The lungs as far as there is air in them; None if that is too little for a chest."""
    dark = body.inside & (body.hu < TISSUE)
    dark &= ~_airways(body, dark)
    core = ndimage.binary_erosion(dark, IN_PLANE, body.pixels(3), border_value=1)
    labels, count = ndimage.label(core)
    gas = _levels(body.hu, labels, count) < body.gas
    dark &= ~ndimage.binary_dilation(gas[labels], IN_PLANE, body.pixels(3) + 1)
    labels, count = ndimage.label(dark)
    aired = _chosen(body.hu, labels, count, core)[labels]
    shown, whole = aired.sum((1, 2)), body.inside.sum((1, 2))
    shares = shown / np.maximum(whole, 0.3 * whole.max() + 1)
    enough = shown.sum() > LEAST_OF_BODY * whole.sum() and np.sum(aired & core) > LEAST_IN_DEPTH * shown.sum()
    return aired if enough and np.quantile(shares, 1 - LEAST_OF_SCAN) > LEAST_OF_SLICE else None


def _airways(body: Body, dark: np.ndarray) -> np.ndarray:
    """Tubes along the body: small, round and as dark as air in each slice, and longer than a lung's tip."""
    d, h, w = body.mm
    darkest = max(float(body.hu.min()), AIR) + 90
    labels, count = ndimage.label(dark, IN_PLANE)
    areas, places = sizes_of(labels, count) * h * w, ndimage.find_objects(labels)
    tube = np.zeros(count + 1, bool)
    for index in np.flatnonzero((areas > 40) & (areas < 1000)):
        place = places[index - 1]
        high, wide = (place[1].stop - place[1].start) * h, (place[2].stop - place[2].start) * w
        if max(high, wide) < 35 and areas[index] > 0.45 * high * wide:
            tube[index] = body.hu[place][labels[place] == index].min() < darkest
    labels, count = ndimage.label(tube[labels])
    lengths = (place[0].stop - place[0].start for place in ndimage.find_objects(labels))
    return np.array([False, *(n >= 3 and n * d > 30 for n in lengths)])[labels]


def _chosen(hu: np.ndarray, labels: np.ndarray, count: int, core: np.ndarray) -> np.ndarray:
    """Which labels are lung: the largest, its like at its height, and islands of air among which a lung is white."""
    within = np.where(core, labels, 0)
    sizes, levels, places = sizes_of(within, count), _levels(hu, within, count), ndimage.find_objects(labels)
    chosen = np.zeros(count + 1, bool)
    if not sizes.any():
        return chosen
    largest = int(sizes.argmax())
    height = places[largest - 1][0]
    for index in np.flatnonzero(sizes > SECOND_LUNG * sizes[largest]):
        own = places[index - 1][0]
        chosen[index] = min(own.stop, height.stop) - max(own.start, height.start) > 0.5 * (own.stop - own.start)
    box = box_of(chosen[labels])
    for index in np.flatnonzero((sizes > ISLAND * sizes[largest]) & ~chosen):
        gas = levels[index] < min(AIR + 130, levels[largest] - 60)
        among = all(a.start >= b.start and a.stop <= b.stop for a, b in zip(places[index - 1], box, strict=True))
        chosen[index] = among and not gas
    return chosen


def _levels(hu: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Mean HU of each label; infinite where it has no voxel, and for label 0."""
    where = np.flatnonzero(labels)
    sums = np.bincount(labels.ravel()[where], hu.ravel()[where], count + 1)
    sizes = sizes_of(labels, count)
    return np.divide(sums, sizes, out=np.full(count + 1, np.inf), where=sizes > 0)


def _block_means(grey: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means of blocks of ``steps`` voxels; the last ones go on with the edge."""
    for axis, step in enumerate(steps):
        if step > 1:
            grey = np.pad(grey, [(0, -n % step if a == axis else 0) for a, n in enumerate(grey.shape)], mode="edge")
            grey = grey.reshape(*grey.shape[:axis], -1, step, *grey.shape[axis + 1 :]).mean(axis + 1, dtype=np.float32)
    return grey
