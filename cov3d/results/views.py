"""A scan as a network looks at it: itself, and its reflection if views are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cov3d.nets.inputs import as_input, reflect
from cov3d.nets.model import Model

SMALL = 64 * 128 * 128  # voxels


def views_of(scan: Tensor, model: Model, tta: bool) -> list[Tensor]:
    """A scan uint8 ``(1, D, H, W)`` where a model is, in [0, 1]: ``(1, 1, D, H, W)``, and its reflection with ``tta``."""
    x = as_input(scan[None].to(next(model.net.parameters()).device))
    return [x, reflect(x)] if tta else [x]


def straight(answers: Tensor) -> Tensor:
    """Answers to views ``(V, …, W)``, that of the reflection mirrored back."""
    return torch.stack([answers[0], *map(reflect, answers[1:])])


def forward(answer: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Logits ``(V, 1, …)`` of views ``(1, 1, D, H, W)``: small ones as one batch, large ones one by one for less memory.

    torch gives single small volumes on a CPU to its slow convolution: a batch of two was ten times faster.
    """
    if views[0].numel() <= SMALL:
        return answer(torch.cat(list(views)))[:, None]
    return torch.stack([answer(view) for view in views])
