"""How features are pooled over the volume."""

from __future__ import annotations

from torch import Tensor


def mean(x: Tensor) -> Tensor:
    """The mean over the volume: ``(B, C, D, H, W)`` → ``(B, C)``; AdaptiveAvgPool3d's gradient varies by run on a GPU."""
    return x.mean((2, 3, 4))


def maximum(x: Tensor) -> Tensor:
    """The maximum over the volume: ``(B, C, D, H, W)`` → ``(B, C)``."""
    return x.amax((2, 3, 4))


POOLS = {"avg": mean, "max": maximum}
