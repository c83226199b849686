"""What happens to a batch on the device before the network sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastai.callback.core import Callback
from torch import Tensor

from cov3d.config import AugmentationNumbers
from cov3d.errors import SettingError
from cov3d.training.draws import Draw, draw
from cov3d.training.intensity import add_noise, blur
from cov3d.training.order import generator_of
from cov3d.training.spatial import place

MASKS = 2  # of a batch's labels: classes, weights, masks


def augment(
    scans: Tensor,
    numbers: AugmentationNumbers,
    generator: torch.Generator,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Training scans, each with its own draw, as the network takes them.

    ``scans`` are uint8 ``(B, 1, D', H', W')`` on any device, the result is ``dtype`` ``(B, 1, D, H, W)`` in [0, 1], D, H, W
    being ``shape`` or as they come. ``generator`` is one of the CPU: the same state gives the same result on the same
    kind of device, and the same but for the noise on another. With every probability 0 it is
    :func:`cov3d.nets.inputs.as_input`, after a resize if ``shape`` is another.

    Where a scan's voxels come from is looked up once (:mod:`cov3d.training.spatial`); blur and noise come after it. As
    published they come between rotation and turns. Blur commutes with turns, and nearly with so smooth a displacement;
    and noise keeps its strength if nothing interpolates it any more.
    """
    if scans.dtype != torch.uint8 or scans.dim() != 5:
        raise SettingError(
            f"scans to augment are uint8 (B, 1, D, H, W), as the cache holds them, not {scans.dtype} {tuple(scans.shape)}"
        )
    shape = scans.shape[2:] if shape is None else shape
    if numbers.random_crop and any(large < small for large, small in zip(scans.shape[2:], shape, strict=True)):
        raise SettingError(f"there is nothing of {tuple(shape)} to crop from scans of {tuple(scans.shape[2:])}")
    draws = draw(len(scans), numbers, scans.shape[2:], shape, generator)
    return apply(scans, draws, shape, dtype)


@torch.no_grad()
def apply(scans: Tensor, draws: Sequence[Draw], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Scans uint8 ``(B, 1, D', H', W')`` as ``(B, 1, *shape)`` in [0, 1], each as its draw says.

    One scan after another, so that beside the batch there are coordinates of one; each is work for a whole GPU.
    """
    result = torch.empty(len(scans), 1, *shape, dtype=dtype, device=scans.device)
    with torch.autocast(scans.device.type, enabled=False):
        for scan, drawn, row in zip(scans[:, 0], draws, result[:, 0], strict=True):
            row.copy_(_apply(scan, drawn, shape))
    return result


def _apply(scan: Tensor, drawn: Draw, shape: Sequence[int]) -> Tensor:
    scan = place(scan, drawn.placement, shape)
    if drawn.sigma:
        scan = blur(scan, drawn.sigma)
    return add_noise(scan, drawn.deviation, drawn.seed) if drawn.deviation else scan


def move_masks(masks: Tensor, draws: Sequence[Draw], shape: Sequence[int]) -> Tensor:
    """Masks uint8 ``(B, 1, D', H', W')`` moved as their scans are, float ``(B, 1, *shape)``; one of 0 and 255 stays hard."""
    moved = apply(masks, [Draw(drawn.placement) for drawn in draws], shape)
    soft = ((masks > 0) & (masks < 255)).flatten(1).any(1).view(-1, 1, 1, 1, 1)
    return torch.where(soft, moved, (moved >= 0.5).to(moved.dtype))


class Augment(Callback):
    """Cast cached scans to float in the network's size and, in training only, augment them."""

    order = -10  # before mixed precision begins

    def __init__(self, numbers: AugmentationNumbers, shape: Sequence[int], seed: int):
        self.numbers, self.shape, self.seed = numbers, tuple(shape), seed

    def before_batch(self) -> None:
        """uint8 ``(B, 1, D', H', W')`` becomes float in [0, 1], ``(B, 1, D, H, W)``; masks, the last labels, go along."""
        scans = self.learn.xb[0]
        draws = self._draws(scans.shape[2:]) if self.learn.training else [Draw()] * len(scans)
        self.learn.xb = (apply(scans, draws, self.shape),)
        if len(self.learn.yb) > MASKS:
            masks = move_masks(self.learn.yb[MASKS], draws, self.shape)
            self.learn.yb = (*self.learn.yb[:MASKS], masks, *self.learn.yb[MASKS + 1 :])

    def _draws(self, cached: Sequence[int]) -> list[Draw]:
        """By seed, epoch and scan alone, so that it matters neither which others are in the batch nor where a run went on."""
        places = self.learn.dls.order.places(self.learn.iter)
        return [draw(1, self.numbers, cached, self.shape, generator_of(self.seed, *place))[0] for place in places]
