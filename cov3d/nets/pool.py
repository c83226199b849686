"""How features are pooled over the volume, or over a picture."""

from __future__ import annotations

from torch import Tensor


def mean(x: Tensor) -> Tensor:
    """The mean over the volume: ``(B, C, D, H, W)`` → ``(B, C)``; AdaptiveAvgPool3d's gradient varies by run on a GPU."""
    return x.mean(tuple(range(2, x.dim())))


def maximum(x: Tensor) -> Tensor:
    """The maximum over the volume: ``(B, C, D, H, W)`` → ``(B, C)``."""
    return x.amax(tuple(range(2, x.dim())))


POOLS = {"avg": mean, "max": maximum}
