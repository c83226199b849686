"""The same scan twice: slice by slice, one within the other, or nearly: compressed again, resized, windowed, cut, turned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np

from cov3d.scans.examine import DETAILS, NOTHING
from cov3d.scans.turned import TURNS, UNTURNED, Turn

NEARLY = 0.84  # correlation of details; see docs/how-to/check-a-study.md for how it was chosen
# Pairs are looked for by some of the voxels, and so many of each scan, in whatever turn, are looked at closely.
CANDIDATES, LEAST = 8, 0.3
AT_ONCE = 512  # scans, so that N × N correlations are never held at once
# One of two scans may begin, and end, by so much of its depth further down or up.
CUTS = np.arange(-0.25, 0.26, 0.025)
LEAST_OVERLAP = 0.6  # of the first scan's depth
LOGO = 20  # scans; a slice that is in more is a title or a test picture, and shows no kinship
AXIAL = tuple(turn for turn in TURNS if turn.axes[0] == 0)


@dataclass(frozen=True)
class Pair:
    """Two scans, by their index, that have slices in common; ``shared`` of them, which is all of ``first`` if ``contained``."""

    first: int
    second: int
    shared: int
    contained: bool


@dataclass(frozen=True)
class Likeness:
    """Two scans that are nearly one when the second is turned."""

    first: int
    second: int
    correlation: float
    turn: Turn


def equal_groups(hashes: Sequence[Sequence[bytes]]) -> list[list[int]]:
    """Scans that have the same slices, in whatever order, as groups of two and more; slices that show nothing left out."""
    groups: dict[tuple[bytes, ...], list[int]] = defaultdict(list)
    for index, slices in enumerate(hashes):
        shown = tuple(sorted(_shown(slices)))
        if shown:
            groups[shown].append(index)
    return [group for group in groups.values() if len(group) > 1]


def shared_slices(hashes: Sequence[Sequence[bytes]]) -> list[Pair]:
    """Pairs of scans that have slices in common; the shorter first."""
    holders: dict[bytes, list[int]] = defaultdict(list)
    for index, slices in enumerate(hashes):
        for one in set(_shown(slices)):
            holders[one].append(index)
    common = Counter(pair for scans in holders.values() if len(scans) <= LOGO for pair in combinations(scans, 2))
    own = [len(set(_shown(slices))) for slices in hashes]
    ordered = [((a, b) if own[a] <= own[b] else (b, a), count) for (a, b), count in common.items()]
    return [Pair(a, b, count, contained=count == own[a]) for (a, b), count in sorted(ordered)]


def repeated(slices: Sequence[bytes]) -> int:
    """How many slices of a scan stand in it before."""
    shown = list(_shown(slices))
    return len(shown) - len(set(shown))


def _shown(slices: Sequence[bytes]) -> Iterator[bytes]:
    return (one for one in slices if one != NOTHING)


# Nearly


def near_pairs(details: np.ndarray) -> list[Likeness]:
    """Pairs of scans whose details, int8 ``(N, 16, 64, 64)``, correlate by more than :data:`NEARLY` in some turn.

    One may lack slices of the other at either end: the depth of one is stretched over the other's before they are compared.
    """
    found: dict[tuple[int, int], Likeness] = {}
    for first, turn, seconds in _candidates(details):
        for second, correlation in zip(seconds.tolist(), _aligned(details[first], turn(details[seconds])), strict=True):
            before = found.get((first, second))
            if correlation > NEARLY and (before is None or before.correlation < correlation):
                found[first, second] = Likeness(first, second, float(correlation), turn)
    return [found[pair] for pair in sorted(found)]


def _candidates(details: np.ndarray) -> Iterator[tuple[int, Turn, np.ndarray]]:
    """For each scan, in each turn, the later scans that may be it."""
    count = len(details)
    best = np.full((count, CANDIDATES), LEAST, np.float32)
    which = np.full((count, CANDIDATES), -1)  # turn * count + scan
    plain = _sample(details)
    for number, turn in enumerate(AXIAL):
        turned = plain if turn == UNTURNED else _sample(turn(details))
        for begin in range(0, count, AT_ONCE):
            rows = slice(begin, begin + AT_ONCE)
            alike = plain[rows] @ turned[begin:].T
            alike[np.tri(*alike.shape).astype(bool)] = -1  # itself, and pairs that were seen from the other scan
            highest = np.argpartition(alike, -min(CANDIDATES, alike.shape[1]))[:, -CANDIDATES:]
            values = np.hstack([best[rows], np.take_along_axis(alike, highest, 1)])
            places = np.hstack([which[rows], highest + begin + number * count])
            order = np.argsort(-values)[:, :CANDIDATES]
            best[rows], which[rows] = np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)
    for first in range(count):
        turns, seconds = np.divmod(which[first][which[first] >= 0], count)
        for number in np.unique(turns):
            yield first, AXIAL[number], seconds[turns == number]


def _sample(details: np.ndarray) -> np.ndarray:
    """One voxel in 32 of each scan, as a vector of norm 1: enough to tell which pairs may be one."""
    voxels = details[:, ::2, ::4, ::4].reshape(len(details), -1).astype(np.float32)
    return voxels / np.maximum(np.linalg.norm(voxels, axis=1, keepdims=True), 1e-6)


def _aligned(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The highest correlation of ``one`` with each of ``others`` over all ways to stretch these along the depth.

    With stretched slices S·b, a·(S·b) and |S·b|² are sums over products of slices, so all ways cost little more than one.
    """
    a, b = (volumes.reshape(-1, DETAILS[0], DETAILS[1] * DETAILS[2]).astype(np.float32) for volumes in (one, others))
    covers, between, within = _stretches()
    products = (a @ b.transpose(0, 2, 1)).reshape(len(b), -1) @ between
    lengths = (b @ b.transpose(0, 2, 1)).reshape(len(b), -1) @ within
    norms = np.sqrt(np.maximum(lengths, 0) * (covers @ np.square(a[0]).sum(1)))
    return (products / np.maximum(norms, 1e-6)).max(1)


@cache
def _stretches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ways S to lay one scan's slices on another's by linear interpolation, of which there are M.

    Which slices each covers ``(M, D)``; weights of products of slices ``(D * D, M)``: S for those of one scan with the other's,
    SᵀS for those of the stretched scan with itself.
    """
    depth = DETAILS[0]
    ways = []
    for top, bottom in product(CUTS, CUTS):
        places = top * (depth - 1) + np.arange(depth) * (1 - top - bottom)
        inside = (places > -1e-6) & (places < depth - 1 + 1e-6)
        if inside.mean() >= LEAST_OVERLAP:
            ways.append(np.maximum(1 - np.abs(places[:, None] - np.arange(depth)), 0) * inside[:, None])
    stretches = np.stack(ways).astype(np.float32)
    squares = stretches.transpose(0, 2, 1) @ stretches
    covers = (stretches.sum(2) > 0).astype(np.float32)
    return covers, stretches.reshape(len(ways), -1).T, squares.reshape(len(ways), -1).T
