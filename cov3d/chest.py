"""Drawn chests: CT scans of nobody, with or without COVID-19, for tests and for trying cov3d without patients.

A chest is painted in the patient's own coordinates: ``u`` to the left and ``v`` to the back, 1 about half a field of view,
and ``z`` from the tips of the lungs (0) to their lowest recess (1). Whatever differs between patients differs among the
healthy as among the ill; only the lesions tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from cov3d.errors import SettingError

# Lesions' share of the lungs, by severity. COV19-CT-DB parts its classes at about 25, 50 and 75 %; these lie lower, so that
# critical chests keep some lung, and leave gaps, so that no label hangs on a voxel.
SHARES = ((0.0, 0.0), (0.02, 0.12), (0.14, 0.28), (0.32, 0.52), (0.56, 0.80))
FEWEST, SMALLEST = 8, 32  # slices and pixels; below, the anatomy falls between the voxels

AIR, LUNG, FAT, CARTILAGE, MUSCLE, BLOOD, MARROW, BONE = -1000, -860, -100, 130, 40, 50, 230, 470  # HU

# What differs from patient to patient, each drawn evenly between two ends.
VARIATION = {
    "field": (320, 400),  # field of view, mm
    "height": (270, 340),  # from the first slice to the last, mm
    "width": (0.94, 1.08),
    "depth": (0.98, 1.2),
    "right": (-0.05, 0.05),  # place in the field of view
    "back": (-0.04, 0.06),
    "turn": (-0.1, 0.1),  # radians
    "head": (0.0, 0.05),  # z of the first slice, and of the last
    "foot": (0.93, 1.05),
    "fat": (0.04, 0.13),  # thickness below the skin, as a share of the trunk's radius
    "inspiration": (-0.04, 0.06),  # how much lower the diaphragm stands
    "heart": (0.9, 1.1),
    "density": (-40, 60),  # of the lungs, HU
    "gravity": (20, 110),  # HU from the middle of the lungs to the back
    "mosaic": (8, 35),  # uneven ventilation, HU
    "atelectasis": (-150, 300),  # collapsed lung along the back, HU; none below 0
    "vessels": (240, 380),  # twigs in each lung
    "calibre": (0.65, 0.95),  # radius of a twig, mm
    "nodule": (-6, 6),  # radius, mm; none below 0
    "table": (0.76, 1.2),  # where it stands; often out of the picture
    "noise": (12, 45),  # HU
    "blur": (0.45, 0.8),  # pixels of 128
}

# Organs are sausages: where they begin and end (u, v, z), their half axes, HU. What comes later lies in front.
_Organ = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float], float]
SPLEEN: _Organ = ((0.46, 0.28, 1.0), (0.46, 0.28, 1.0), (0.24, 0.27, 0.26), 55)
STOMACH: _Organ = ((0.3, -0.12, 1.0), (0.42, -0.1, 0.98), (0.18, 0.24, 0.22), 30)
GAS: _Organ = ((0.3, -0.24, 1.0), (0.42, -0.22, 0.96), (0.08, 0.08, 0.12), AIR + 20)
HEART: _Organ = ((0.04, -0.18, 0.58), (0.18, -0.12, 0.66), (0.24, 0.24, 0.18), BLOOD)
CHEST: tuple[_Organ, ...] = (
    HEART,
    ((-0.06, -0.12, 0.28), (0.04, -0.10, 0.5), (0.085, 0.085, 0.05), BLOOD),  # ascending aorta
    ((-0.06, -0.12, 0.28), (0.1, 0.2, 0.24), (0.08, 0.08, 0.05), BLOOD),  # its arch
    ((0.1, 0.26, 0.26), (0.08, 0.28, 1.1), (0.075, 0.075, 0.04), BLOOD),  # descending aorta
    ((-0.12, -0.06, 0.1), (-0.12, -0.06, 0.5), (0.055, 0.055, 0.03), BLOOD),  # upper caval vein
    ((-0.17, 0.06, 0.42), (0.19, 0.06, 0.40), (0.075, 0.075, 0.045), BLOOD),  # pulmonary arteries
    ((0.04, 0.24, 0.0), (0.04, 0.24, 1.1), (0.035, 0.035, 0.02), MUSCLE),  # gullet
    ((0.1, -0.05, -0.1), (0.07, 0.0, 0.24), (0.04, 0.04, 0.02), BLOOD),  # arteries of neck and arms
    ((-0.11, -0.05, -0.1), (-0.06, -0.08, 0.24), (0.04, 0.04, 0.02), BLOOD),
    ((0.0, 0.08, -0.2), (0.0, 0.12, 0.35), (0.072, 0.072, 0.04), MUSCLE),  # trachea and main bronchi, walls first
    ((0.0, 0.12, 0.35), (-0.2, 0.1, 0.43), (0.052, 0.052, 0.03), MUSCLE),
    ((0.0, 0.12, 0.35), (0.22, 0.12, 0.46), (0.05, 0.05, 0.03), MUSCLE),
    ((0.0, 0.08, -0.2), (0.0, 0.12, 0.35), (0.055, 0.055, 0.03), AIR + 20),
    ((0.0, 0.12, 0.35), (-0.2, 0.1, 0.43), (0.034, 0.034, 0.02), AIR + 20),
    ((0.0, 0.12, 0.35), (0.22, 0.12, 0.46), (0.032, 0.032, 0.02), AIR + 20),
)
HILA = ((-0.17, 0.08, 0.44), (0.19, 0.08, 0.46))  # where the vessels enter the right lung and the left


@dataclass(frozen=True)
class Chest:
    """A drawn chest.

    ``hu`` is ``(D, H, W)`` int16 in HU; its axes point Inferior, Posterior, Left: slice 0 at the head, rows front to back,
    columns patient right to left. ``lungs``, lesions included, and ``lesions`` are masks of that shape. ``spacing`` is in
    mm ``(D, H, W)``. ``presence`` is 0 or 1; ``severity`` is 0 none, 1 mild … 4 critical.
    """

    hu: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    spacing: tuple[float, float, float]
    presence: int
    severity: int


def draw(seed: int | Sequence[int], severity: int, size: int = 128, slices: int = 48) -> Chest:
    """Draw one chest of ``slices`` × ``size`` × ``size`` voxels.

    The same seed is the same patient in the same scanner, whatever the severity; only the lesions differ.

    Raises:
        SettingError: a severity other than 0…4, or fewer voxels than a chest needs.
    """
    if severity not in range(len(SHARES)):
        raise SettingError(f"severity {severity} is not one of 0 (none) to {len(SHARES) - 1} (critical)")
    if slices < FEWEST or size < SMALLEST:
        raise SettingError(f"{slices} slices of {size} pixels hold no chest; draw at least {FEWEST} of {SMALLEST}")
    anatomy, tree, disease, scanner = np.random.default_rng(seed).spawn(4)
    patient = SimpleNamespace(**{name: anatomy.uniform(*ends) for name, ends in VARIATION.items()})
    place = _Place.of(patient, size, slices)
    lungs = _lungs(place)
    hu = _trunk(anatomy, place)
    _mediastinum(hu, place)
    lesions, depth = _lesions(disease, place, lungs, severity)
    density = _healthy(anatomy, place) + _opacity(disease, place, lesions, depth)
    np.copyto(hu, np.clip(density, AIR + 15, MUSCLE), where=lungs)
    _nodule(anatomy, hu, place, lungs)
    _vessels(tree, hu, place, lungs)
    return Chest(_scan(scanner, hu, place), lungs, lesions, place.spacing, int(severity > 0), severity)


@dataclass(frozen=True)
class _Place:
    """Where every voxel lies: ``u`` and ``v`` ``(1, H, W)``, ``z`` ``(D, 1, 1)``, and ``wall``, 1 on the ribs' inner face."""

    patient: SimpleNamespace
    u: np.ndarray
    v: np.ndarray
    z: np.ndarray
    wall: np.ndarray
    spacing: tuple[float, float, float]

    @classmethod
    def of(cls, patient: SimpleNamespace, size: int, slices: int) -> _Place:
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        x, y = axis[None, None, :] - patient.right, axis[None, :, None] - patient.back
        cosine, sine = math.cos(patient.turn), math.sin(patient.turn)
        u, v = (x * cosine + y * sine) / patient.width, (y * cosine - x * sine) / patient.depth
        z = np.linspace(patient.head, patient.foot, slices, dtype=np.float32)[:, None, None]
        dome = np.sqrt(1 - (1 - np.clip((z + 0.03) / 0.48, 0, 1)) ** 2)  # the ribs close over the lungs' tips
        wall = _oval(u / (0.70 * dome), (v - 0.22 + 0.2 * dome) / (0.16 + 0.36 * dome), 2.3)
        return cls(patient, u, v, z, wall, (patient.height / (slices - 1), patient.field / size, patient.field / size))

    def sausage(self, organ: _Organ) -> np.ndarray:
        """1 on an organ's surface, less within."""
        begin, end, half, _ = organ
        axes = [(axis - b) / h for axis, b, h in zip((self.u, self.v, self.z), begin, half, strict=True)]
        along = [(e - b) / h for b, e, h in zip(begin, end, half, strict=True)]
        if any(along):
            t = sum(a * d for a, d in zip(axes, along, strict=True) if d) / sum(d * d for d in along)
            t = np.clip(t, 0, 1)
            axes = [a - t * d if d else a for a, d in zip(axes, along, strict=True)]
        return np.sqrt(axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2)

    def paint(self, hu: np.ndarray, organ: _Organ, within: np.ndarray | None = None) -> None:
        """Fill an organ, looking only at the slices it can be in."""
        low, high = min(organ[0][2], organ[1][2]) - organ[2][2], max(organ[0][2], organ[1][2]) + organ[2][2]
        first, last = np.searchsorted(self.z.ravel(), (low, high))
        inside = replace(self, z=self.z[first:last]).sausage(organ) < 1
        np.copyto(hu[first:last], organ[3], where=inside if within is None else inside & within[first:last])

    def field(self, rng: Generator, mm: float) -> np.ndarray:
        """A smooth random field of unit variance that changes over ``mm``: bumps of random height on a lattice."""
        bases = [_bumps(n, n * step / mm) for n, step in zip(self.wall.shape, self.spacing, strict=True)]
        heights = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
        for basis in bases:  # each turn takes the first axis and puts it last, interpolated
            heights = np.tensordot(heights, basis, axes=(0, 1))
        return heights


def _bumps(count: int, length: float) -> np.ndarray:
    """Weights ``(count, bumps)`` of bumps 1 apart along an axis ``length`` long; each row's squares add up to 1."""
    centres = np.arange(-1, np.ceil(length) + 2)
    basis = np.exp(-2 * (np.linspace(0, length, count)[:, None] - centres) ** 2)
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)


def _oval(u: np.ndarray, v: np.ndarray, power: float = 2) -> np.ndarray:
    """1 on an ellipse of half axes 1, or for a higher power on a boxier oval."""
    return (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)


def _diaphragm(place: _Place) -> np.ndarray:
    """z of the diaphragm: two domes, the right one, over the liver, the higher."""
    bowl = ((np.abs(place.u) - 0.36) / 0.34) ** 2 + ((place.v + 0.1) / 0.42) ** 2
    return np.where(place.u < 0, 0.66, 0.71).astype(np.float32) + place.patient.inspiration + 0.15 * bowl


def _heart(patient: SimpleNamespace) -> _Organ:
    """It rests on the diaphragm."""
    begin, end, half, hu = HEART
    lower = patient.inspiration
    u, v, z = (axis * patient.heart for axis in half)
    return (*begin[:2], begin[2] + lower), (*end[:2], end[2] + lower), (u, v, z), hu


def _lungs(place: _Place) -> np.ndarray:
    u, v, z = place.u, place.v, place.z
    middle = 0.025 + 0.12 * np.exp(-(((v - 0.12) / 0.2) ** 2)) + 0.05 * np.clip(1 - z / 0.2, 0, 1)
    spine = _oval(u / 0.15, (v - 0.46) / 0.2) < 1
    aorta = (_oval(u - 0.09, v - 0.27) < 0.1) & (z > 0.24)
    free = (np.abs(u - 0.02) > middle) & ~spine & ~aorta & (place.sausage(_heart(place.patient)) > 1.03)
    return free & (place.wall < 0.985) & (z < _diaphragm(place))


def _trunk(rng: Generator, place: _Place) -> np.ndarray:
    """Everything but lungs and mediastinum: air, table, skin, fat, muscle, upper belly and bones."""
    u, v, z = place.u, place.v, place.z
    hu = np.full(place.wall.shape, AIR, np.float32)
    board = v - place.patient.table + 0.15 * u * u
    np.copyto(hu, AIR + 40, where=board > 0)
    np.copyto(hu, -250, where=np.abs(board) < 0.015)
    rise = np.clip((z + 0.15) / 0.45, 0, 1)  # shoulders are wide and flat
    body = _oval(u / (1.14 - 0.23 * rise), (v - 0.2 * (1 - rise)) / (0.48 + 0.21 * rise), 2.4)
    streaks = place.field(rng, 11)
    np.copyto(hu, MUSCLE - 60, where=body < 1)  # skin, thinner than a pixel
    np.copyto(hu, FAT, where=body < 0.975)
    np.copyto(hu, np.where(streaks > 1.3, FAT, MUSCLE), where=body < 1 - place.patient.fat)
    _belly(hu, place, streaks)
    _bones(hu, place)
    return hu


def _belly(hu: np.ndarray, place: _Place, streaks: np.ndarray) -> None:
    below = (place.wall < 1) & (place.z > _diaphragm(place))
    np.copyto(hu, FAT + 15 * streaks, where=below)
    for organ in (SPLEEN, STOMACH, GAS):
        place.paint(hu, organ, below)
    np.copyto(hu, BLOOD + 8 + 5 * streaks, where=below & (place.u + 0.5 * place.v < 0.05))  # liver


def _bones(hu: np.ndarray, place: _Place) -> None:
    u, v, z, wall = np.abs(place.u), place.v, place.z, place.wall
    ribs = (wall > 1.03) & (wall < 1.11) & (u > 0.12)
    ribs &= np.cos(2 * np.pi * (10 * z - 2.2 * (0.5 - v))) > 0.2  # they sink on their way to the front
    np.copyto(hu, np.where(v > -0.36, BONE - 50, CARTILAGE), where=ribs)
    sternum = (wall > 1.02) & (wall < 1.14) & (u < 0.1) & (v < 0) & (z > 0.14) & (z < 0.68)
    np.copyto(hu, np.where((wall > 1.045) & (wall < 1.115) & (u < 0.08), MARROW, BONE), where=sternum)
    mirrored = replace(place, u=u)
    blade: _Organ = ((0.5, 0.54, 0), (0.76, 0.3, 0), (0.028, 0.028, 0.42), BONE - 70)
    collar: _Organ = ((0.08, -0.22, 0.1), (0.62, -0.02, 0.0), (0.05, 0.05, 0.03), BONE - 50)
    for bone in (blade, collar):
        mirrored.paint(hu, bone, wall > 1.12)
    _spine(hu, mirrored)


def _spine(hu: np.ndarray, place: _Place) -> None:
    u, v = place.u, place.v
    body = _oval(u / 0.12, (v - 0.37) / 0.1)
    canal = _oval(u / 0.066, (v - 0.515) / 0.055)
    disc = np.cos(2 * np.pi * 11 * place.z) < -0.85
    for end in ((0.0, 0.62, 0.5), (0.22, 0.56, 0.5)):  # spinous and transverse processes, all the way down
        place.paint(hu, ((0.02, 0.52, 0.5), end, (0.027, 0.03, math.inf), BONE - 40))
    np.copyto(hu, np.where(disc, CARTILAGE, np.where(body < 0.84, MARROW, BONE)), where=body < 1)
    np.copyto(hu, BONE, where=(canal < 1.5) & (v > 0.49))
    np.copyto(hu, MUSCLE - 20, where=canal < 1)


def _mediastinum(hu: np.ndarray, place: _Place) -> None:
    """Fat between the lungs, and in it heart, great vessels, gullet and airways."""
    soft = (place.wall < 1) & (place.z < _diaphragm(place)) & (place.v < 0.3) & (hu <= BLOOD)
    np.copyto(hu, FAT + 40, where=soft)
    for organ in (_heart(place.patient), *CHEST[1:]):
        place.paint(hu, organ)


def _healthy(rng: Generator, place: _Place) -> np.ndarray:
    """HU of healthy lung: heavier to the back, unevenly aired, at times collapsed along the back."""
    p = place.patient
    collapse = np.clip((place.wall - 0.86) / 0.12, 0, 1) * np.clip((place.v - 0.18) / 0.2, 0, 1)
    uneven = p.mosaic * place.field(rng, 45) + 12 * place.field(rng, 7)
    return LUNG + p.density + p.gravity * place.v + uneven + max(p.atelectasis, 0) * collapse


def _lesions(rng: Generator, place: _Place, lungs: np.ndarray, severity: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask of lesions, exact in its share of the lungs, and how deep in a lesion each voxel lies: 0 on its edge.

    Lesions are where a random field is highest that leans to the pleura, to the back and to the base.
    """
    pleura, back, base = rng.uniform((0.8, 0.0, 0.0), (2.2, 1.6, 1.6)).tolist()
    terrain = place.field(rng, 38) + 0.45 * place.field(rng, 14)
    terrain += pleura * place.wall**2 + back * place.v + base * place.z
    count = round(rng.uniform(*SHARES[severity]) * np.count_nonzero(lungs))
    if not count:
        return np.zeros_like(lungs), np.full_like(terrain, -np.inf)
    edge = np.partition(terrain[lungs], -count)[-count]
    return lungs & (terrain >= edge), terrain - edge


def _opacity(rng: Generator, place: _Place, lesions: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """HU that lesions add to lung: soft-edged ground glass, and consolidation where they are deepest."""
    glass, consolidated = rng.uniform((200, 0.03), (400, 0.35)).tolist()
    texture = place.field(rng, 9)
    rough = depth + 0.3 * texture
    core = float(np.quantile(rough[lesions], 1 - consolidated)) if lesions.any() else 0.0
    dense = np.clip((rough - core) / 0.3, 0, 1)
    return np.clip(0.5 + depth / 0.3, 0, 1) * glass * (1 + 0.15 * texture) + dense * (850 - glass)


def _nodule(rng: Generator, hu: np.ndarray, place: _Place, lungs: np.ndarray) -> None:
    """At times a benign nodule, in the healthy and the ill alike."""
    centre = rng.choice(np.argwhere(lungs))
    axes = zip(np.ogrid[tuple(map(slice, hu.shape))], centre, place.spacing, strict=True)
    apart = sum(((axis - c) * mm) ** 2 for axis, c, mm in axes)
    np.copyto(hu, MUSCLE, where=lungs & (apart < max(place.patient.nodule, 0) ** 2))


def _vessels(rng: Generator, hu: np.ndarray, place: _Place, lungs: np.ndarray) -> None:
    """Blend a tree of vessels into each lung; they show in ground glass and drown in consolidation."""
    share = np.zeros_like(hu)
    for half, hilum in zip((place.u < 0, place.u > 0), HILA, strict=True):
        tips = rng.choice(np.argwhere(lungs & half), round(place.patient.vessels))
        root = np.unravel_index(np.argmin(place.sausage((hilum, hilum, (1, 1, 0.6), BLOOD))), hu.shape)
        points = np.vstack([root, tips + rng.uniform(-0.5, 0.5, tips.shape)]) * place.spacing
        _splat(share, _tree(points, place.patient.calibre), place.spacing)
    hu += np.where(lungs, share * np.maximum(BLOOD - hu, 0), 0)


def _tree(points: np.ndarray, calibre: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join ``points`` (N, 3) into a tree grown from the first: where each branch begins and ends, and its radius, in mm."""
    points = points[np.argsort(np.linalg.norm(points - points[0], axis=1), kind="stable")]
    parent, path, twigs = np.zeros(len(points), int), np.zeros(len(points)), np.ones(len(points))
    for i in range(1, len(points)):
        step = np.sqrt(((points[:i] - points[i]) ** 2).sum(1))
        parent[i] = np.argmin(step + 0.25 * path[:i])  # a short branch, on no long detour from the root
        path[i] = path[parent[i]] + step[parent[i]]
    for i in range(len(points) - 1, 0, -1):
        twigs[parent[i]] += twigs[i]
    return points[parent[1:]], points[1:], calibre * twigs[1:] ** 0.4  # nearly Murray's law


def _splat(share: np.ndarray, tree: tuple[np.ndarray, np.ndarray, np.ndarray], spacing: Sequence[float]) -> None:
    """Raise ``share``, how much of each voxel is vessel, along the branches."""
    begins, ends, radii = tree
    pixel = spacing[-1]
    scale = np.array((0.5, 1, 1)) * pixel  # slices are thick: what crosses one shows
    t = np.linspace(0, 1, int(np.linalg.norm(ends - begins, axis=1).max() / pixel) + 2)[:, None, None]
    points = ((begins + t * (ends - begins)) / spacing).reshape(-1, 3)
    radii = np.tile(radii, len(t))
    reach = [math.ceil(radii.max() / mm) for mm in spacing]
    for offset in np.ndindex(*(2 * r + 1 for r in reach)):
        step = np.subtract(offset, reach)
        near = radii + 0.5 * pixel > np.linalg.norm(np.maximum(np.abs(step) - 0.5, 0) * scale)
        voxels = np.rint(points[near]).astype(int) + step
        apart = np.linalg.norm((voxels - points[near]) * scale, axis=1)
        amount = np.clip(0.5 + (radii[near] - apart) / pixel, 0, 1).astype(np.float32)
        inside = np.all((voxels >= 0) & (voxels < share.shape), axis=1)
        np.maximum.at(share, tuple(voxels[inside].T), amount[inside])


def _scan(rng: Generator, hu: np.ndarray, place: _Place) -> np.ndarray:
    """What the scanner makes of it: blur, grainy noise, whole HU."""
    blur = place.patient.blur * hu.shape[-1] / 128
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0, 0.6, 0.6), truncate=2.5)
    image = ndimage.gaussian_filter(hu, (0, blur, blur), truncate=2.5) + grain * (place.patient.noise / grain.std())
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
