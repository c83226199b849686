"""Random smooth displacement: white noise under a wide Gaussian, drawn in the few shapes that such a field is made of.

Published (Simard et al. 2003, as Kienzle et al., arXiv 2206.15073, apply it to volumes of 224³): each of three components
is white noise U(−1, 1) at every voxel, smoothed along each axis by a Gaussian of 35 voxels cut off at 2.5 of them, with
zeros around, times α. On every voxel that is three convolutions of 175 taps. But the result is a sum of very many small
independent numbers, so it is Gaussian by the central limit, with a covariance that is the product of one matrix per axis;
and such a matrix has few eigenvectors that matter. A field is a small random core between them: the same distribution,
borders included, in a hundredth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

SIGMA, PUBLISHED_SIDE, WIDTH = 35.0, 224, 5  # voxels; voxels; the Gaussian from end to end, in σ
ALPHA = (1.0, 7.0)
VARIANCE = 1 / 3  # of U(−1, 1)
RANK = 12  # eigenvectors of an axis; its covariance is then right to 1e-4 of the largest entry


def smoothing(size: int) -> np.ndarray:
    """The published Gaussian along an axis of ``size`` voxels, zeros around it, as a matrix ``(size, size)``.

    σ keeps its share of the axis: 35 voxels of 224, 20 of 128.
    """
    sigma = SIGMA * size / PUBLISHED_SIDE
    reach = int(WIDTH * sigma) // 2
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    apart = np.subtract.outer(np.arange(size), np.arange(size))
    return np.where(np.abs(apart) <= reach, (taps / taps.sum())[np.clip(apart + reach, 0, 2 * reach)], 0)


def covariance(size: int) -> np.ndarray:
    """The share of an axis of ``size`` voxels in a component's covariance for α = 1, ``(size, size)``.

    The covariance between two voxels is the product of the three axes' shares, in normalised coordinates, in which the
    volume reaches from −1 to 1. Noise on a coarser grid would keep more of itself under the Gaussian; the factor takes
    that back, so that the field is the same at every size, and the published one at 224.
    """
    matrix = smoothing(size)
    return matrix @ matrix.T * (size / PUBLISHED_SIDE) * VARIANCE ** (1 / 3)


@cache
def basis(size: int) -> np.ndarray:
    """The largest eigenvectors of :func:`covariance`, each times the root of its eigenvalue, ``(size, RANK)`` or fewer."""
    values, vectors = np.linalg.eigh(covariance(size))
    return (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :RANK].astype(np.float32)


def bases(shape: Sequence[int], device: torch.device) -> list[Tensor]:
    """The three axes' bases for a volume ``(D, H, W)``."""
    return [torch.from_numpy(basis(size)).to(device) for size in shape]


def field(core: Tensor, shape: Sequence[int]) -> Tensor:
    """The displacement ``(D, H, W, 3)`` in normalised coordinates that a core ``(RANK, RANK, RANK, 3)`` of N(0, α²) makes."""
    depth, height, width = bases(shape, core.device)
    core = core[: depth.shape[1], : height.shape[1], : width.shape[1]]
    return torch.einsum("ijkc,wk,hj,di->dhwc", core, width, height, depth)  # small products first


def rms_voxels(shape: Sequence[int]) -> float:
    """How far α = 1 moves the voxels of a volume ``(D, H, W)``: root mean square over voxels and draws, in voxels."""
    mean_square = np.prod([np.trace(covariance(size)) / size for size in shape])
    return float(np.sqrt(mean_square * sum((size / 2) ** 2 for size in shape)))
