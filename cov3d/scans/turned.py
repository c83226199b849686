"""Scans that lie otherwise than a study's others: feet first, upside down, mirrored, turned, or not axial."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

FEWEST = 12  # scans; the mean of fewer is no mean chest
# How much better a scan must fit the mean chest when it is turned. Drawn chests fit at least 0.047 worse when turned.
BETTER, LEAST_FIT = 0.03, 0.4
# Correlation of what differs between left and right with that of the mean chest: at least 0.096 in drawn chests.
MIRRORED = -0.1
SHIFTS = np.arange(-3, 3.5, 0.5)  # columns of the small scan, to lay the body's middle into the picture's
AT_ONCE = 256  # scans


@dataclass(frozen=True)
class Turn:
    """A way to lie: volumes' axes (D, H, W) taken in another order, then some of them reversed."""

    axes: tuple[int, ...] = (0, 1, 2)
    flips: tuple[bool, ...] = (False, False, False)

    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        """Turn volumes ``(N, D, H, W)``; a view."""
        turned = volumes.transpose(0, *(axis + 1 for axis in self.axes))
        return np.flip(turned, tuple(axis + 1 for axis, flip in enumerate(self.flips) if flip))

    def __str__(self) -> str:
        """What is wrong with volumes that this turn lays right."""
        if self.axes[0] != 0:
            return "not axial"
        d, h, w = self.flips
        swapped = self.axes != (0, 1, 2)
        words = ["head and feet exchanged"] if d else []
        if swapped:
            words.append("slices turned by 90 degrees" if h != w else "slices turned by 90 degrees and mirrored")
        elif h and w:
            words.append("slices turned by 180 degrees")
        else:
            words += ["front and back exchanged"] * h + ["left and right exchanged"] * w
        return ", ".join(words)


UNTURNED = Turn()
MIRROR = Turn(flips=(False, False, True))
# All 48, the one that does nothing first.
TURNS = tuple(Turn(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3))


def find_turned(volumes: np.ndarray) -> dict[int, Turn]:
    """Volumes ``(N, n, n, n)`` that lie otherwise than the mean of the others, each with the turn that lays it right.

    Nothing is said of few volumes, nor where it is not clear. Left and right differ little, so they are told apart last: by
    what differs between them, when the body's middle has been laid into the picture's.
    """
    if len(volumes) < FEWEST:
        return {}
    turns = _turns_but_mirrors(_halved(volumes))
    mirrored = _mirrored(np.stack([turn(volume[None])[0] for turn, volume in zip(turns, volumes, strict=True)]))
    whole = [
        Turn(turn.axes, (*turn.flips[:2], bool(turn.flips[2] != mirror)))
        for turn, mirror in zip(turns, mirrored, strict=True)
    ]
    return {index: turn for index, turn in enumerate(whole) if turn != UNTURNED}


def _turns_but_mirrors(volumes: np.ndarray) -> list[Turn]:
    """The turn of each volume that fits the others' mean best, left and right taken for the same."""
    symmetric = _unit(volumes + MIRROR(volumes))
    others = _unit(symmetric.sum(0) - symmetric)
    candidates = [turn for turn in TURNS if not turn.flips[2]]
    fits = np.stack([_dot(_unit(turn(volumes) + MIRROR(turn(volumes))), others) for turn in candidates])
    best, fit = fits.argmax(0), fits.max(0)
    clear = (fit > fits[0] + BETTER) & (fit > LEAST_FIT)
    return [candidates[k] if sure else UNTURNED for k, sure in zip(best, clear, strict=True)]


def _mirrored(volumes: np.ndarray) -> np.ndarray:
    """Which volumes have left and right exchanged, as bool ``(N,)``."""
    blocks = [volumes[first : first + AT_ONCE] for first in range(0, len(volumes), AT_ONCE)]
    centred = np.concatenate([_halved(_centred(block)) for block in blocks])
    differs = _unit(centred - MIRROR(centred))
    agreement = _dot(differs, _unit(differs.sum(0) - differs))
    sure = np.median(agreement) > -MIRRORED  # else left and right do not differ enough in this study
    return (agreement < MIRRORED) & sure


def _centred(volumes: np.ndarray) -> np.ndarray:
    """Volumes shifted along W so that the plane in which they are most symmetric is the middle one."""
    volumes = volumes.astype(np.float32)
    reflected = MIRROR(volumes)
    uneven = [np.square(volumes - np.roll(reflected, int(2 * shift), axis=3)).sum((1, 2, 3)) for shift in SHIFTS]
    ends = [(int(np.floor(-shift)), int(np.ceil(-shift))) for shift in SHIFTS]  # half a column is the mean of two
    shifted = [(np.roll(volumes, low, axis=3) + np.roll(volumes, high, axis=3)) / 2 for low, high in ends]
    return np.stack([shifted[k][index] for index, k in enumerate(np.argmin(uneven, axis=0))])


def _halved(volumes: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 × 2 voxels."""
    n, d, h, w = volumes.shape
    return volumes.reshape(n, d // 2, 2, h // 2, 2, w // 2, 2).mean((2, 4, 6), dtype=np.float32)


def _unit(volumes: np.ndarray) -> np.ndarray:
    """Volumes of mean 0 and norm 1."""
    centred = volumes - volumes.mean((1, 2, 3), keepdims=True)
    return centred / np.maximum(np.sqrt(np.square(centred).sum((1, 2, 3), keepdims=True)), 1e-6)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum((1, 2, 3))
