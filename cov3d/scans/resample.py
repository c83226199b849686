"""From one tensor of a scan to another tensor of the same scan, made by other settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cov3d.scans.frame import Frame


def resample(values: np.ndarray, source: Frame, target: Frame, shape: Sequence[int]) -> np.ndarray:
    """The values ``(D, H, W)`` of a tensor that lies as ``source`` says, at the places of one ``shape`` that lies as ``target``.

    Linear along each axis; beyond the source's middles its values stay the same, and outside its box they are 0. Float32.
    """
    values = values.astype(np.float32, copy=False)
    for axis in range(3):
        places, inside = _places(axis, source, target, values.shape[axis], shape[axis])
        before = places.astype(int)
        after = np.minimum(before + 1, values.shape[axis] - 1)
        share = (places - before).astype(np.float32)
        sides = [-1 if k == axis else 1 for k in range(3)]
        low, high = np.take(values, before, axis), np.take(values, after, axis)
        values = (low + (high - low) * share.reshape(sides)) * inside.reshape(sides)
    return values


def _places(axis: int, source: Frame, target: Frame, have: int, want: int) -> tuple[np.ndarray, np.ndarray]:
    """Where ``want`` voxels of the target lie among ``have`` of the source, and which of them lie in its box."""
    if axis == 0:
        (first, last), (begin, end) = source.span, target.span
        there = np.linspace(begin, end, want)  # of one, the first, as in the cache
        half = (last - first) / max(have - 1, 1) / 2
        places = (there - first) / (last - first) * (have - 1) if last > first else np.full(want, (have - 1) / 2)
        inside = (there >= first - half) & (there <= last + half)
    else:
        (first, last), (begin, end) = source.box[axis], target.box[axis]
        there = begin + (np.arange(want) + 0.5) * (end - begin) / want
        places = (there - first) * have / (last - first) - 0.5
        inside = (there >= first) & (there <= last)
    return places.clip(0, have - 1), inside.astype(np.float32)
