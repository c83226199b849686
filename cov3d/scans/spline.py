"""The not-a-knot cubic spline along depth, as a matrix, applied in bands."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline

# A slice's influence on the spline dies within a dozen slices; below this it is nothing beside a grey level of 1.
NEGLIGIBLE = 1e-6


def spline_matrix(positions: np.ndarray, depth: int) -> np.ndarray:
    """The matrix M ``(depth, n)`` whose product with n slices is their spline read at ``depth`` places.

    The spline is linear in its data, so one matrix serves every pixel column (Turnbull, arXiv 2207.12218, section 3.1:
    knots at linspace(0, 1, n), read at linspace(0, 1, depth)). ``positions`` ``(n,)`` are the slices' places along the
    body, in any unit. n = 1 gives a constant, n = 2 a line, n = 3 a parabola. First and last slice stay first and last.
    """
    if len(positions) == 1:
        return np.ones((depth, 1), np.float32)
    knots = (positions - positions[0]) / (positions[-1] - positions[0])
    spline = CubicSpline(knots, np.eye(len(knots)), bc_type="not-a-knot")
    return spline(np.linspace(0, 1, depth)).astype(np.float32)


def add_band(volume: np.ndarray, columns: np.ndarray, slices: np.ndarray) -> None:
    """Add what some slices contribute: ``volume (D, P) += columns (D, k) @ slices (k, P)``, in the rows they reach."""
    rows = np.flatnonzero((np.abs(columns) > NEGLIGIBLE).any(axis=1))
    if len(rows):
        first, last = rows[0], rows[-1] + 1
        volume[first:last] += columns[first:last] @ slices
