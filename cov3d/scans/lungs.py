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

from cov3d.config import Preprocessing

Window = tuple[float, float]
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]

WINDOW = (Preprocessing.window_low, Preprocessing.window_high)  # HU of grey 0 and 255
ASSUMED = (300, 350, 350)  # mm that a scan of unknown spacing covers
BODIES = ((2, 4000), (100, 700), (100, 700))  # mm; a spacing that gives less or more is none
SEARCHED = (96, 128, 128)  # voxels along each axis at most; more are averaged
GLANCED = (32, 56, 56)  # about so many are enough to tell whether there are lungs

AIR, TISSUE, BONE = -1000, -300, 150  # HU; ground glass is below TISSUE, consolidation above
GAS = 45  # HU above the air around the patient; lungs, even emphysematous ones, are lighter

# Less is the bases in an abdomen's first slices, bowel, or noise.
LEAST_OF_BODY = 0.03  # of its volume
LEAST_OF_SLICE, LEAST_OF_SCAN = 0.12, 0.15  # of the body's area, in so many of the slices
LEAST_IN_DEPTH = 0.2  # of the lungs themselves is not on their surface
LEAST_WALLS = 0.03  # of the volume is body
SECOND_LUNG, ISLAND = 0.1, 0.002  # of the larger lung

IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


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
    body = _Body.of(_block_means(grey, steps), grey.shape, spacing, window)
    mask = _aired(body)
    if mask is None:
        return None
    mask = _with_white_parts(body, mask)
    for axis, step in enumerate(steps):
        mask = mask.repeat(step, axis) if step > 1 else mask
    mask = mask[tuple(map(slice, grey.shape))]
    return Lungs(mask, _box(mask))


def shows_lungs(grey: np.ndarray, window: Window = WINDOW) -> bool:
    """Whether uint8 ``(D, H, W)`` shows lungs, at a glance: some 10 ms whatever its size."""
    steps = [max(1, round(n / about)) for n, about in zip(grey.shape, GLANCED, strict=True)]
    glance = grey[tuple(slice(step // 2, None, step) for step in steps)]
    return _aired(_Body.of(glance, grey.shape, None, window)) is not None


@dataclass(frozen=True)
class _Body:
    """The patient: HU ``(D, H, W)``, mm of a voxel, what the skin encloses, and HU below which that is gas, not lung."""

    hu: np.ndarray
    mm: Spacing
    inside: np.ndarray
    gas: float

    @classmethod
    def of(cls, grey: np.ndarray, shape: Sequence[int], spacing: Spacing | None, window: Window) -> _Body:
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
    sizes = _sizes(labels, count)
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
    open_air = _edges((_sizes(labels, count) > 0.003 * hu.size)[labels])
    labels, count = ndimage.label(~walls, IN_PLANE)
    edges, areas = _edges(labels), _sizes(labels, count)
    opened = _sizes(edges[open_air], count) > 0
    flat = _sizes(edges, count) ** 2 > 4 * areas
    black = _sizes(labels[smooth < air + 30], count) > 0.5 * areas
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


def _aired(body: _Body) -> np.ndarray | None:
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


def _airways(body: _Body, dark: np.ndarray) -> np.ndarray:
    """Tubes along the body: small, round and as dark as air in each slice, and longer than a lung's tip."""
    d, h, w = body.mm
    darkest = max(float(body.hu.min()), AIR) + 90
    labels, count = ndimage.label(dark, IN_PLANE)
    areas, places = _sizes(labels, count) * h * w, ndimage.find_objects(labels)
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
    sizes, levels, places = _sizes(within, count), _levels(hu, within, count), ndimage.find_objects(labels)
    chosen = np.zeros(count + 1, bool)
    if not sizes.any():
        return chosen
    largest = int(sizes.argmax())
    height = places[largest - 1][0]
    for index in np.flatnonzero(sizes > SECOND_LUNG * sizes[largest]):
        own = places[index - 1][0]
        chosen[index] = min(own.stop, height.stop) - max(own.start, height.start) > 0.5 * (own.stop - own.start)
    box = _box(chosen[labels])
    for index in np.flatnonzero((sizes > ISLAND * sizes[largest]) & ~chosen):
        gas = levels[index] < min(AIR + 130, levels[largest] - 60)
        among = all(a.start >= b.start and a.stop <= b.stop for a, b in zip(places[index - 1], box, strict=True))
        chosen[index] = among and not gas
    return chosen


def _with_white_parts(body: _Body, aired: np.ndarray) -> np.ndarray:
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
    box = _box(lungs)
    lungs[box] = ndimage.binary_fill_holes(lungs[box])
    return lungs


def _posture(body: _Body, lungs: np.ndarray) -> tuple[bool, bool]:
    """Whether the patient lies on a side, being wider from shoulder to shoulder, and whether the spine is in front."""
    d, h, w = _box(lungs)
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


def _sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each label; none of label 0."""
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return sizes


def _levels(hu: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Mean HU of each label; infinite where it has no voxel, and for label 0."""
    where = np.flatnonzero(labels)
    sums = np.bincount(labels.ravel()[where], hu.ravel()[where], count + 1)
    sizes = _sizes(labels, count)
    return np.divide(sums, sizes, out=np.full(count + 1, np.inf), where=sizes > 0)


def _edges(volume: np.ndarray) -> np.ndarray:
    """The voxels on the edges in plane, flat."""
    return np.concatenate([volume[:, [0, -1]].ravel(), volume[:, 1:-1, [0, -1]].ravel()])


def _box(mask: np.ndarray) -> Box:
    d, h, w = (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return slice(int(d[0]), int(d[-1]) + 1), slice(int(h[0]), int(h[-1]) + 1), slice(int(w[0]), int(w[-1]) + 1)


def _block_means(grey: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means of blocks of ``steps`` voxels; the last ones go on with the edge."""
    for axis, step in enumerate(steps):
        if step > 1:
            grey = np.pad(grey, [(0, -n % step if a == axis else 0) for a, n in enumerate(grey.shape)], mode="edge")
            grey = grey.reshape(*grey.shape[:axis], -1, step, *grey.shape[axis + 1 :]).mean(axis + 1, dtype=np.float32)
    return grey
