"""Where a scan turns into another one: the step from slice to slice is suddenly far larger than around it."""

from __future__ import annotations

import numpy as np

from cov3d.scans.continuity import odd_slices

# A step (1 - correlation of neighbouring slices) over the median of the steps around it. In whole chests it stays below 3;
# where one drawn chest turns into another it is 7 at least. So it is, too, where many slices are missing.
JUMP, LEAST_STEP = 5.0, 0.03
AROUND = 4  # steps on either side
FEWEST = 8  # slices; in fewer nothing is usual


def find_jumps(pictures: np.ndarray) -> tuple[list[int], bool]:
    """Slices after which the picture jumps, counted from 0; and whether slices of two scans take turns.

    ``pictures`` are the slices in small, float ``(n, pixels)``. Single slices that do not belong are another fault, and
    passed over.
    """
    if len(pictures) < FEWEST:
        return [], False
    if np.median(_apart(pictures, 1)) > np.median(_apart(pictures, 2)):
        return [], True
    sound = np.setdiff1d(np.arange(len(pictures)), odd_slices(pictures))
    step = _apart(pictures[sound], 1)
    found = []
    for k in np.flatnonzero(step > LEAST_STEP):
        around = np.concatenate([step[max(0, k - AROUND) : k], step[k + 1 : k + 1 + AROUND]])
        if len(around) and step[k] > JUMP * np.median(around):
            found.append(int(sound[k]))
    return found, False


def _apart(pictures: np.ndarray, slices: int) -> np.ndarray:
    """1 - correlation of each slice and the one so many slices further down; 0 where one of them shows nothing."""
    centred = pictures - pictures.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1)
    product = norm[slices:] * norm[:-slices]
    correlation = (centred[slices:] * centred[:-slices]).sum(1) / np.maximum(product, 1e-6)
    return np.where(product > 0, 1 - correlation, 0)
