"""From settings to a network: the one table of architectures."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cov3d.config import NetSettings
from cov3d.errors import SettingError
from cov3d.nets.convnext import convnext
from cov3d.nets.encoder import Encoder
from cov3d.nets.resnet import mc3_18, r2plus1d_18, resnet18
from cov3d.nets.upernet import Segmenter

Heads = tuple[str, ...]
CLASSES, MASKS = "classes", "masks"  # what a network may answer
NETS: dict[str, Callable[[NetSettings], Encoder]] = {
    "resnet18": resnet18,
    "mc3-18": mc3_18,
    "r2plus1d-18": r2plus1d_18,
    "convnext-micro": convnext,
    "convnext-tiny": convnext,
    "convnext-small": convnext,
    "convnext-base": convnext,
}


def build(settings: NetSettings, heads: Heads = (CLASSES,)) -> nn.Module:
    """The network that ``settings`` describe, with random weights: ``(B, 1, D, H, W)`` → logits ``(B, 6)``.

    With ``"masks"`` among its heads it is a :class:`cov3d.nets.upernet.Segmenter`.

    Raises:
        SettingError: there is no such architecture.
    """
    if settings.architecture not in NETS:
        raise SettingError(f"--architecture {settings.architecture!r} is not one of {', '.join(NETS)}")
    encoder = NETS[settings.architecture](settings)
    return Segmenter(encoder, classify=CLASSES in heads) if MASKS in heads else encoder
