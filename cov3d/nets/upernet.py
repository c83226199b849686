"""Lesion masks from the features of either family, by a head like UPerNet's.

As Kienzle et al. (arXiv 2206.15073) cut it down from Xiao et al., "Unified Perceptual Parsing for Scene Understanding"
(arXiv 1807.10221): no pyramid pooling, 16 channels everywhere, .47 M parameters beside a convnext-tiny.

    stage 0…3   C_k channels  1×1×1 → 16, LayerNorm, ReLU, resized to a quarter of each side
    together    64            7×7×7 → 16, LayerNorm, ReLU, 7×7×7 → 16, LayerNorm, ReLU, 7×7×7 → 1
    the mask    1             four times as large, trilinear
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cov3d.nets.convnext import EPSILON, ChannelNorm, initialise
from cov3d.nets.encoder import Encoder

CHANNELS = 16
KERNEL = 7
STRIDE = 4  # of the maps that are put together


class Segmenter(nn.Module):
    """A network that draws lesion masks; with ``classify`` its encoder answers too, on the same features.

    ``(B, 1, D, H, W)`` float → logits ``(B, 6)``, or None, and mask logits ``(B, 1, D, H, W)``.
    """

    def __init__(self, encoder: Encoder, classify: bool):
        super().__init__()
        self.encoder = encoder
        self.widths = encoder.widths
        self.classify = classify
        if not classify:
            encoder.head = nn.Identity()  # what nothing trains is nobody's to start from
        self.decoder = Decoder(encoder.widths)

    @property
    def checkpointing(self) -> bool:
        """Whether the encoder's activations are computed again in the backward pass."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.encoder.checkpointing = value

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        features = self.encoder.features(x)
        logits = self.encoder.answer(features[-1]) if self.classify else None
        return logits, self.decoder(features, x.shape[2:])

    def classes(self, x: Tensor) -> Tensor:
        """Logits ``(B, 6)`` alone."""
        return self.encoder(x)

    def masks(self, x: Tensor) -> Tensor:
        """Mask logits ``(B, 1, D, H, W)`` alone."""
        return self.decoder(self.encoder.features(x), x.shape[2:])


class Decoder(nn.Module):
    """Four feature maps ``(B, C_k, …)`` → mask logits ``(B, 1, D, H, W)``."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.lateral = nn.ModuleList(_normed(nn.Conv3d(width, CHANNELS, 1)) for width in widths)
        self.together = nn.Sequential(
            _normed(_wide(len(widths) * CHANNELS, CHANNELS)), _normed(_wide(CHANNELS, CHANNELS)), _wide(CHANNELS, 1)
        )
        self.apply(initialise)

    def forward(self, features: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """``shape`` is the volume's ``(D, H, W)``; where 4 does not divide a side, the far end of the last voxel is cut."""
        quarter = [-(-side // STRIDE) for side in shape]
        maps = [resized(lateral(x), quarter) for lateral, x in zip(self.lateral, features, strict=True)]
        logits = self.together(torch.cat(maps, 1))  # (B, 64, D/4, H/4, W/4) -> (B, 1, D/4, H/4, W/4)
        whole = F.interpolate(logits, scale_factor=STRIDE, mode="trilinear", align_corners=False)
        depth, height, width = shape
        return whole[:, :, :depth, :height, :width]


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A feature map at ``shape``: averaged where it is finer, as a ResNet's first one is, then trilinear."""
    d, h, w = (min(have, want) for have, want in zip(x.shape[2:], shape, strict=True))
    x = F.adaptive_avg_pool3d(x, (d, h, w))
    return F.interpolate(x, list(shape), mode="trilinear", align_corners=False)  # as it is, where the size is right


def _wide(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, KERNEL, padding=KERNEL // 2)


def _normed(convolution: nn.Conv3d) -> nn.Sequential:
    return nn.Sequential(convolution, ChannelNorm(convolution.out_channels, EPSILON), nn.ReLU())
