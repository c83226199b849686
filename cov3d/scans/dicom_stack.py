"""CT images piled up to stacks: grouped by series and geometry, duplicates dropped, in order, and looked at for gaps."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from cov3d.console import plural
from cov3d.scans.dicom_headers import Slice
from cov3d.scans.dicom_pixels import Decoder
from cov3d.scans.scan import GAP, Flaw
from cov3d.scans.volume import LPS_TO_RAS

SAME_PLACE_MM = 0.09  # less than any slices are apart
# Distances of slices may differ by so much, in mm or as a share, before a stack is uneven.
UNEVEN_MM, UNEVEN_SHARE = 0.1, 0.05
TILT_DEGREES = 1.0
SIDEWAYS_MM = 1.0
OVERLAP = 0.5  # of the shorter acquisition
SAME_AXES = 0.01  # direction cosines; half a degree
PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Stack:
    """Images of one series with the same size, spacing and orientation, in order along their normal."""

    slices: tuple[Slice, ...]
    duplicates: int = 0
    parted: bool = False  # one acquisition of a series that holds several
    problem: str = ""  # what nobody can forgive

    @property
    def normal(self) -> np.ndarray:
        """The direction ``(3,)`` in which the slices are piled."""
        return np.cross(*self.slices[0].orientation)

    @property
    def places(self) -> np.ndarray:
        """Where the slices lie along the normal, mm, ``(n,)``."""
        return np.array([item.position for item in self.slices]) @ self.normal

    @property
    def step(self) -> float:
        """The distance of neighbouring slices in mm; of a single one it is not known, and 1 stands for it."""
        steps = np.diff(self.places)
        return float(steps[_usual(steps)].mean()) if len(steps) else 1.0

    @property
    def length(self) -> float:
        """How much of the body the slices cover, mm."""
        return float(np.ptp(self.places)) + abs(self.step)

    @property
    def plane(self) -> str:
        """The plane of the patient that the images are nearest to."""
        return PLANES[int(np.abs(self.normal).argmax())]

    @property
    def affine(self) -> np.ndarray:
        """From (slice, row, column) to mm Right, Anterior, Superior, as nibabel has it."""
        first = self.slices[0]
        across, down = first.orientation
        axes = np.stack([self.normal * self.step, down * first.spacing[0], across * first.spacing[1]], axis=1)
        affine = np.eye(4)
        affine[:3, :3] = LPS_TO_RAS @ axes
        affine[:3, 3] = LPS_TO_RAS @ first.position
        return affine

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """Uneven distances and tilts, with their numbers."""
        return (*_distances(self.places), *_sideways(self))

    @property
    def regular(self) -> bool:
        """Whether it can be read without forgiving anything."""
        return not self.flaws and not self.problem

    def turned_over(self) -> Stack:
        """The same from the other end."""
        return replace(self, slices=self.slices[::-1])

    @property
    def positions(self) -> np.ndarray:
        """Where the slices lie along the body ``(n,)``, from 0: whole numbers if they are evenly spaced, else mm."""
        if not _distances(self.places):
            return np.arange(len(self.slices), dtype=float)
        return np.abs(self.places - self.places[0])


def stacks_of(slices: Iterable[Slice]) -> list[Stack]:
    """All stacks that images make, whatever their plane."""
    groups: dict[tuple, list[list[Slice]]] = defaultdict(list)
    for item in slices:
        alike = groups[item.series, item.size]
        group = next((group for group in alike if _same_axes(group[0], item)), None)
        if group is None:
            alike.append([item])
        else:
            group.append(item)
    return [stack for alike in groups.values() for group in alike for stack in _stacks(group)]


def _same_axes(a: Slice, b: Slice) -> bool:
    return bool(
        np.abs(a.orientation - b.orientation).max() < SAME_AXES and np.allclose(a.spacing, b.spacing, rtol=0.01)
    )


def _stacks(group: Sequence[Slice]) -> list[Stack]:
    """The stack of a group; several, if several acquisitions went over the same places."""
    stack = _pile(group)
    acquisitions = sorted({item.acquisition for item in group})
    parted = [[item for item in group if item.acquisition == number] for number in acquisitions]
    if len(parted) == 1 or not (stack.problem or _overlap(parted)):
        return [stack]
    return [replace(_pile(part), parted=True) for part in parted]


def _overlap(parted: Sequence[Sequence[Slice]]) -> bool:
    """Whether acquisitions went over the same part of the body, and not on from each other's end."""
    normal = np.cross(*parted[0][0].orientation)
    spans = sorted((float(places.min()), float(places.max())) for places in (_places(part, normal) for part in parted))
    for (low, high), (begin, end) in pairwise(spans):
        if min(high, end) - begin > OVERLAP * min(high - low, end - begin) > 0:
            return True
    return False


def _places(group: Sequence[Slice], normal: np.ndarray) -> np.ndarray:
    return np.array([item.position for item in group]) @ normal


def _pile(group: Sequence[Slice]) -> Stack:
    """Images in order along their normal, each place once."""
    ordered = sorted(group, key=lambda item: float(item.position @ np.cross(*group[0].orientation)))
    apart = np.flatnonzero(np.diff(Stack(tuple(ordered)).places) >= SAME_PLACE_MM) + 1
    places = [ordered[begin:end] for begin, end in pairwise([0, *apart.tolist(), len(ordered)])]
    digests = _digests([item for place in places if len(place) > 1 for item in place])
    kept, different = [], 0
    for place in places:
        whole = [item for item in place if digests.get(id(item))] or place  # one copy may be cut
        different += len({digests.get(id(item)) for item in whole}) > 1
        kept.append(whole[0])
    problem = f"several different images at {plural(different, 'place')} (phases or reconstructions?); keep one of each"
    return Stack(tuple(kept), duplicates=len(ordered) - len(kept), problem=problem if different else "")


def _digests(items: Sequence[Slice]) -> dict[int, str]:
    """A hash of each image's values, by the image's identity; empty if it cannot be decoded."""
    decode, digests = Decoder(), {}
    for item in sorted(items, key=lambda item: (item.part.name, id(item.part), item.frame or 0)):  # file by file
        try:
            values = decode(item.part, item.frame)
        except Exception:  # it is said when it is read
            digests[id(item)] = ""
            continue
        digests[id(item)] = hashlib.sha256(repr((item.slope, item.intercept)).encode() + values.tobytes()).hexdigest()
    return digests


def _tolerance(steps: np.ndarray) -> float:
    """How far distances may be from their median; a little more, since some write positions in tenths of a mm."""
    return max(UNEVEN_MM, UNEVEN_SHARE * float(np.median(np.abs(steps)))) + 1e-6


def _usual(steps: np.ndarray) -> np.ndarray:
    """Which distances are as the others."""
    return np.abs(steps - np.median(steps)) <= _tolerance(steps)


def _distances(places: np.ndarray) -> tuple[Flaw, ...]:
    """Where slices are missing, or unevenly spaced."""
    steps = np.abs(np.diff(places))
    if len(steps) < 2:
        return ()
    even = _usual(steps)
    usual, tolerance = float(steps[even].mean()), _tolerance(steps)
    odd = np.flatnonzero(~even)
    if not len(odd):
        return ()
    times = np.rint(steps[odd] / usual)
    if (times >= 2).all() and (np.abs(steps[odd] - times * usual) <= tolerance * times).all():
        first = odd[0]
        text = (
            f"{plural(int((times - 1).sum()), 'slice')} missing: {steps[first]:.2f} mm between {places[first]:.2f} and "
            f"{places[first + 1]:.2f} mm, where the others are {usual:.2f} mm apart"
        )
        return (Flaw(GAP, text if len(odd) == 1 else f"{text}, and {len(odd) - 1} more gaps"),)
    return (Flaw(GAP, f"slices are unevenly spaced: {steps.min():.2f} to {steps.max():.2f} mm apart"),)


def _sideways(stack: Stack) -> tuple[Flaw, ...]:
    """Slices that were moved in their plane, or a gantry that was tilted."""
    if len(stack.slices) < 2:
        return ()
    places = stack.places - stack.places[0]
    offsets = np.array([item.position for item in stack.slices]) - stack.slices[0].position
    offsets -= places[:, None] * stack.normal
    drift = np.median(np.diff(offsets, axis=0) / np.diff(places)[:, None], axis=0)  # mm a mm
    jumps = np.linalg.norm(np.diff(offsets - places[:, None] * drift, axis=0), axis=1)
    if jumps.max() > max(SIDEWAYS_MM, float(stack.slices[0].spacing.max())):
        return (Flaw(GAP, f"slices are moved sideways by up to {jumps.max():.1f} mm"),)
    degrees = float(np.rad2deg(np.arctan(np.linalg.norm(drift))))
    if degrees > TILT_DEGREES:
        return (Flaw(GAP, f"the gantry was tilted: slices move {degrees:.1f} degrees off their normal"),)
    return ()
