"""Where the voxels of an augmented scan come from: crop, flips, rotation, 90° turns and elastic displacement in one sampling.

The steps are those of Kienzle et al. (arXiv 2206.15073), one after another: crop, flip, rotate, turn, displace. Looked at
from the last to the first, each says where a voxel of its result lies in what it was given, so together they are one
map from the finished scan back into the cached one, in normalised coordinates in which a volume reaches from −1 to 1:

    source(x) = flips · rotation · turns · (x + displacement(x))

and the cached scan is looked up once, linearly. One look-up loses less detail than five, and is faster. Where all of it
only moves whole voxels, they are moved. Outside the scan is air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cov3d.nets.inputs import as_input
from cov3d.training.elastic import bases

PLANES = ((0, 1), (1, 2), (0, 2))  # (D, H), (H, W), (D, W): turned in the published order
VOXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**24}  # whose coordinates fit a core's cache; or some hundred MB


@dataclass(frozen=True)
class Placement:
    """Where one scan's voxels come from. The default moves nothing.

    ``corner`` is the first voxel ``(D, H, W)`` of a crop, None for the whole scan at the network's size; ``flips`` say
    which of D, H, W run backwards; ``degrees`` turn in the (H, W) plane; ``turns`` count quarter turns in each of
    :data:`PLANES`; ``core`` ``(R, R, R, 3)`` is that of an elastic field (:func:`cov3d.training.elastic.field`).
    """

    corner: tuple[int, int, int] | None = None
    flips: tuple[bool, bool, bool] = (False, False, False)
    degrees: float = 0.0
    turns: tuple[int, int, int] = (0, 0, 0)
    core: Tensor | None = None

    @property
    def exact(self) -> bool:
        """Whether only whole voxels are moved, if the size stays."""
        return self.degrees == 0 and self.core is None


def place(scan: Tensor, placement: Placement, shape: Sequence[int]) -> Tensor:
    """A cached scan uint8 ``(D', H', W')`` as float ``shape`` in [0, 1], its voxels from where ``placement`` says."""
    if placement.corner is not None:
        for axis, (first, side) in enumerate(zip(placement.corner, shape, strict=True)):
            scan = scan.narrow(axis, first, side)
    if placement.exact and scan.shape == tuple(shape):
        return as_input(move(scan, placement))
    return sample(as_input(scan), placement, shape)


def move(scan: Tensor, placement: Placement) -> Tensor:
    """Flips and turns ``(D, H, W)`` as views: no voxel changes."""
    scan = scan.flip([axis for axis, flipped in enumerate(placement.flips) if flipped])
    for times, plane in zip(placement.turns, PLANES, strict=True):
        scan = scan.rot90(times, plane)
    return scan


def sample(scan: Tensor, placement: Placement, shape: Sequence[int]) -> Tensor:
    """A scan float ``(D', H', W')`` read linearly at the places of ``shape``, a few slices at a time."""
    depth, height, width = shape
    matrix = to_source(placement, shape).to(scan)
    slices = max(1, VOXELS_AT_ONCE.get(scan.device.type, 2**17) // (height * width))
    result = torch.empty(depth, height, width, device=scan.device)
    displaced = displacement(placement.core, matrix, shape)
    along_depth, in_plane = straight(matrix, shape)
    for first in range(0, depth, slices):
        last = min(first + slices, depth)
        places = in_plane + along_depth[first:last, None, None]
        if displaced is not None:
            places += (displaced[0][first:last] @ displaced[1]).view_as(places)
        result[first:last] = look_up(scan, places)
    return result


def look_up(scan: Tensor, places: Tensor) -> Tensor:
    """The values ``(d, H, W)`` of a scan ``(D', H', W')`` at normalised places ``(d, H, W, 3)`` = W, H, D; 0 outside."""
    return functional.grid_sample(scan[None, None], places[None], align_corners=False)[0, 0]


def to_source(placement: Placement, shape: Sequence[int]) -> Tensor:
    """The matrix ``(3, 3)`` float64 from a place in the result to that in the scan, both as D, H, W in −1…1."""
    sides = torch.tensor(shape, dtype=torch.float64)
    matrix = rotation(placement.degrees, PLANES[1])
    for times, plane in zip(placement.turns, PLANES, strict=True):
        matrix = matrix @ rotation(90 * times, plane).round()
    signs = torch.tensor([-1.0 if flipped else 1.0 for flipped in placement.flips], dtype=torch.float64)
    return signs[:, None] * matrix * sides / sides[:, None]


def rotation(degrees: float, plane: tuple[int, int]) -> Tensor:
    """The matrix ``(3, 3)`` that says where a voxel lay before a volume was turned from the plane's first axis to its second."""
    first, second = plane
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[first, first] = matrix[second, second] = angle.cos()
    matrix[first, second], matrix[second, first] = angle.sin(), -angle.sin()
    return matrix


def straight(matrix: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where the voxels come from without displacement: a term for each slice ``(D, 3)``, and one for each pixel ``(H, W, 3)``.

    grid_sample names a place by W, H, D, hence the rows backwards. Sums, not products of matrices: these may be rounded to
    ten bits on a GPU.
    """
    rows = matrix.flip(0)
    depth, height, width = (
        ((2 * torch.arange(side, device=matrix.device) + 1) / side - 1)[:, None] * rows[:, axis]
        for axis, side in enumerate(shape)
    )
    return depth, height[:, None] + width


def displacement(core: Tensor | None, matrix: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """An elastic field as seen in the source, as two factors ``(D, R)`` and ``(R, H · W · 3)``; None without a core."""
    if core is None:
        return None
    depth, height, width = bases(shape, matrix.device)
    core = core.to(matrix)[: depth.shape[1], : height.shape[1], : width.shape[1]]
    planes = torch.einsum("ijkc,ec,wk,hj->ihwe", core, matrix.flip(0), width, height)  # small products first
    return depth, planes.reshape(len(planes), -1)
