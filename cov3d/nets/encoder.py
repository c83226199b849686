"""What every network is: four stages of features, and a head that answers from the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from cov3d.nets.checkpoint import checkpointed


class Encoder(nn.Module, ABC):
    """``(B, 1, D, H, W)`` float → logits ``(B, 6)`` (:mod:`cov3d.labels`), by way of four feature maps.

    ``widths`` are the maps' channels.
    """

    widths: tuple[int, ...]
    checkpointing = False  # recompute activations in the backward pass instead of keeping them

    @abstractmethod
    def stage_maps(self, x: Tensor) -> Iterator[Tensor]:
        """Feature maps ``(B, C, …)``, one after another, each coarser than the one before."""

    @abstractmethod
    def answer(self, features: Tensor) -> Tensor:
        """Logits ``(B, 6)`` from the last feature map."""

    def forward(self, x: Tensor) -> Tensor:
        for features in self.stage_maps(x):  # one at a time: without gradients, earlier stages need not be kept
            x = features
        return self.answer(x)

    def features(self, x: Tensor) -> list[Tensor]:
        """What the four stages give, for a decoder."""
        return list(self.stage_maps(x))

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block's output, whose activations are kept or computed again."""
        return checkpointed(block, x) if self.checkpointing else block(x)
