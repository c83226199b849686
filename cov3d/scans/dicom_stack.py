"""CT images piled up to stacks: grouped by series and geometry, duplicates dropped, in order, and looked at for gaps."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from cov3d.scans.dicom_headers import Slice
from cov3d.scans.dicom_pixels import stored_values, whole_dataset
from cov3d.scans.scan import GAP, Flaw
from cov3d.scans.volume import LPS_TO_RAS

SAME_PLACE_MM = 0.01
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
    acquisition: str | None = None  # if the series was parted by it
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
        return float(np.median(np.diff(self.places))) if len(self.slices) > 1 else 1.0

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
    return [replace(_pile(part), acquisition=number) for number, part in zip(acquisitions, parted, strict=True)]


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
    places = Stack(tuple(ordered)).places
    kept: list[Slice] = []
    twice = different = 0
    begin = 0
    for end in range(1, len(ordered) + 1):
        if end < len(ordered) and places[end] - places[end - 1] < SAME_PLACE_MM:
            continue
        here = ordered[begin:end]
        begin = end
        kept.append(here[0])
        if len(here) > 1:
            twice += len(here) - 1
            different += len({_digest(item) for item in here}) > 1
    problem = f"{different} places hold several different images (phases or reconstructions?); keep one of each"
    return Stack(tuple(kept), duplicates=twice, problem=problem if different else "")


def _digest(item: Slice) -> str:
    """A hash of an image's values; of one that cannot be decoded, of its bytes."""
    try:
        values = stored_values(whole_dataset(item.part), item.frame)
        return hashlib.sha256(repr((item.slope, item.intercept)).encode() + values.tobytes()).hexdigest()
    except Exception:
        return hashlib.sha256(item.part.read()).hexdigest()


def _distances(places: np.ndarray) -> tuple[Flaw, ...]:
    """Where slices are missing, or unevenly spaced."""
    steps = np.abs(np.diff(places))
    if len(steps) < 2:
        return ()
    usual = float(np.median(steps))
    tolerance = max(UNEVEN_MM, UNEVEN_SHARE * usual)
    odd = np.flatnonzero(np.abs(steps - usual) > tolerance)
    if not len(odd):
        return ()
    times = np.rint(steps[odd] / usual)
    if (times >= 2).all() and (np.abs(steps[odd] - times * usual) <= tolerance * times).all():
        first = odd[0]
        text = (
            f"{int((times - 1).sum())} slices missing: {steps[first]:.2f} mm between {places[first]:.2f} and "
            f"{places[first + 1]:.2f} mm, where the others are {usual:.2f} mm apart"
        )
        return (Flaw(GAP, text if len(odd) == 1 else f"{text}, and {len(odd) - 1} more gaps"),)
    return (Flaw(GAP, f"slices are unevenly spaced: {steps.min():.2f} to {steps.max():.2f} mm apart"),)


def _sideways(stack: Stack) -> tuple[Flaw, ...]:
    """A gantry that was tilted, or slices that were moved in their plane."""
    if len(stack.slices) < 2:
        return ()
    places = stack.places
    offsets = np.array([item.position for item in stack.slices]) - places[:, None] * stack.normal
    drift = float(np.linalg.norm(offsets[-1] - offsets[0]))
    degrees = float(np.rad2deg(np.arctan2(drift, abs(places[-1] - places[0]))))
    if degrees > TILT_DEGREES:
        return (Flaw(GAP, f"the gantry was tilted: slices move {degrees:.1f} degrees off their normal"),)
    moved = float(np.linalg.norm(offsets - offsets[0], axis=1).max())
    pixel = float(stack.slices[0].spacing.max())
    if moved > max(SIDEWAYS_MM, pixel) and moved > 2 * drift:
        return (Flaw(GAP, f"slices are moved sideways by up to {moved:.1f} mm"),)
    return ()
