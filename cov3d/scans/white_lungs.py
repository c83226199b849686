"""The white parts of lungs: where no air shows, lungs are taken from the ribs behind them, or from the other lung."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cov3d.scans.body import Body, Spacing, box_of

BONE = 150  # HU


def with_white_parts(body: Body, aired: np.ndarray) -> np.ndarray:
    """The lungs with vessels, lesions and what is white of them."""
    size = (1, 2 * body.pixels(9) + 1, 2 * body.pixels(9) + 1)
    closed = ndimage.minimum_filter(ndimage.maximum_filter(aired, size), size, mode="constant")
    lungs = aired | closed & body.inside
    side, prone = _posture(body, lungs)

    def upright(volume: np.ndarray) -> np.ndarray:
        """A view of the volume in which the patient lies on the back."""
        volume = volume.swapaxes(1, 2) if side else volume
        return volume[:, ::-1] if prone else volume

    d, h, w = body.mm
    view, inside, bone = map(upright, (lungs, body.inside, body.inside & (body.hu > BONE)))
    middle = _middle(view, inside, bone)
    view |= _up_to_ribs(view, bone, middle, (d, w, h) if side else (d, h, w)) & inside & ~bone
    view |= _mirrored(view, middle) & inside & ~bone
    box = box_of(lungs)
    lungs[box] = ndimage.binary_fill_holes(lungs[box])
    return lungs


def _posture(body: Body, lungs: np.ndarray) -> tuple[bool, bool]:
    """Whether the patient lies on a side, being wider from shoulder to shoulder, and whether the spine is in front."""
    d, h, w = box_of(lungs)
    outline = np.any(body.inside[d], axis=0)
    high, wide = (np.count_nonzero(np.any(outline, axis)) * mm for axis, mm in zip((1, 0), body.mm[1:], strict=True))
    side, bone = high > 1.15 * wide, body.hu[d] > BONE
    if side:
        bone, h, w = bone.swapaxes(1, 2), w, h
    third, sixth = (w.stop - w.start) // 3, (h.stop - h.start) // 6
    rows = np.count_nonzero(bone[:, :, w.start + third : w.stop - third], axis=(0, 2))
    return side, bool(rows[: h.start + sixth].sum() > 1.5 * rows[h.stop - sixth :].sum())


def _middle(lungs: np.ndarray, inside: np.ndarray, bone: np.ndarray) -> float | None:
    """The column of the spine: half of all bone lies to either side. None where the picture cuts off a side."""
    shown = lungs.any((1, 2))
    heights = np.count_nonzero(inside[shown], axis=(0, 1))
    cut = heights[[0, -1]] > 0.75 * heights.max()
    bones = np.count_nonzero(bone[shown], axis=(0, 1)).cumsum()
    return None if cut[0] != cut[1] or not bones[-1] else float(np.searchsorted(bones, bones[-1] / 2))


def _up_to_ribs(lungs: np.ndarray, bone: np.ndarray, middle: float | None, mm: Spacing) -> np.ndarray:
    """What lies between the lungs' back and the ribs behind, where that is too thick for a chest wall.

    Lungs reach lowest at the back, and lesions and fluid sink there; in front it may as well be heart or liver.
    """
    d, h, w = mm
    count = lungs.shape[1]
    rows = np.arange(count)[:, None]
    back = np.where(lungs.any(1), count - 1 - lungs[:, ::-1].argmax(1), count)[:, None]
    behind = bone & (rows > back)
    ribs = np.where(behind.any(1), behind.argmax(1), count)
    ribs = ndimage.minimum_filter(ribs, (2 * round(12 / d) + 1, 1))[:, None]  # closes the gaps between ribs
    gap = np.where(ribs < count, ribs - back, 0) * h
    thick = (gap > 12) & (gap < 130)
    if middle is not None:  # spine and heart
        thick &= np.abs(np.arange(lungs.shape[2]) - middle) * w > 35
    thick = ndimage.binary_opening(thick, np.ones((max(1, round(15 / d)), 1, max(1, round(15 / w)))))
    return thick & (rows > back) & (rows < ribs - 4 / h)


def _mirrored(lungs: np.ndarray, middle: float | None) -> np.ndarray:
    """The larger lung's mirror image, where less than half as much is found on the other side."""
    if middle is None:
        return np.zeros_like(lungs)
    columns = np.arange(lungs.shape[2])
    sizes, poor = np.count_nonzero(lungs, axis=(0, 1)), columns < middle
    if sizes[poor].sum() > sizes[~poor].sum():
        poor = ~poor
    if sizes[poor].sum() > 0.5 * sizes[~poor].sum():
        return np.zeros_like(lungs)
    source = np.rint(2 * middle - columns).astype(int)
    poor &= (source >= 0) & (source < len(columns))
    return lungs[:, :, np.where(poor, source, 0)] & poor
