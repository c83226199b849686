"""What happens to a batch on the device before the network sees it."""

from __future__ import annotations

import torch
from fastai.callback.core import Callback

from cov3d.nets.inputs import as_input, reflect


class PrepareInput(Callback):
    """Cast cached scans to float and, in training only, reflect each with probability ½."""

    order = -10  # before mixed precision begins

    def __init__(self, reflection: bool, seed: int):
        self.reflection = reflection
        self.generator = torch.Generator().manual_seed(seed)

    def before_batch(self) -> None:
        """uint8 ``(B, 1, D, H, W)`` becomes float in [0, 1]."""
        scans = self.learn.xb[0]
        if self.learn.training and self.reflection:
            turned = (torch.rand(len(scans), generator=self.generator) < 0.5).to(scans.device)
            scans = torch.where(turned[:, None, None, None, None], reflect(scans), scans)
        self.learn.xb = (as_input(scans),)
