"""What changes a scan's grey levels in augmentation: a little blur, a little noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

TAPS = 3  # to either side: at σ = .8 the next would weigh 2e-6
SHARE, MEAN = 0.03, 0.5  # of noise in what it is mixed into; its mean


def blur(scan: Tensor, sigma: float) -> Tensor:
    """A scan ``(D, H, W)`` under a Gaussian of ``sigma`` voxels, along one axis after another; its edge goes on outside."""
    taps = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(TAPS + 1)]
    whole = taps[0] + 2 * sum(taps[1:])
    for axis in range(3):
        scan = _along(scan, [tap / whole for tap in taps], axis)
    return scan


def _along(scan: Tensor, weights: list[float], axis: int) -> Tensor:
    """The weighted sum of a scan ``(D, H, W)`` and its shifts along one axis."""
    side = scan.shape[axis]
    margins = [0, 0] * (2 - axis) + [TAPS, TAPS] + [0, 0] * axis
    wide = functional.pad(scan[None, None], margins, mode="replicate")[0, 0]
    total = wide.narrow(axis, TAPS, side) * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        total.add_(wide.narrow(axis, TAPS - offset, side), alpha=weight)
        total.add_(wide.narrow(axis, TAPS + offset, side), alpha=weight)
    return total


def add_noise(scan: Tensor, deviation: float, seed: int) -> Tensor:
    """A scan ``(D, H, W)`` in [0, 1], mixed with .03 of N(.5, ``deviation``²); air stays air, and [0, 1] stays [0, 1].

    So does the published code of Kienzle et al. with ``deviation`` from U(.3, 1), which leaves the darkest voxels alone,
    but lets others leave [0, 1]. cov3d clips them: no scan that the network meets later has them. (The paper gives
    U(.6, .8), of values normalised by mean and deviation.) The noise is drawn on the scan's device: the same for the
    same seed and kind of device, another on another.
    """
    generator = torch.Generator(scan.device).manual_seed(seed)
    noise = torch.randn(scan.shape, generator=generator, device=scan.device)
    noise.mul_(SHARE * deviation).add_(SHARE * MEAN).add_(scan, alpha=1 - SHARE).clamp_(0, 1)
    return noise.mul_(scan > 0)
