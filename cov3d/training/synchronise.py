"""BatchNorm over the scans of all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from cov3d.training.ranks import Ranks


class Synchronised(nn.Module):
    """A BatchNorm that normalises ``(B, C, ...)`` by the statistics of the whole batch, whose gradients go to all processes.

    Its parameters and buffers have the names of the one whose place it takes. torch's own is for GPUs alone; this one is for
    any device, so that it can be compared with one process that has the whole batch.
    """

    counts = True  # whether this process has a share of the batch
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: Any, group: Any = None):
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum, self.group = (
            norm.weight,
            norm.bias,
            norm.eps,
            norm.momentum,
            group,
        )
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training by all processes' batch, else by the running statistics."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        shape = (1, -1, *[1] * (x.dim() - 2))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        values = x.float()
        count = self._sum(torch.full((1,), values.numel() / values.shape[1], device=x.device))
        mean = self._sum(values.sum(axes)) / count
        variance = self._sum(((values - mean.view(shape)) ** 2).sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        normed = (values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)

    def _sum(self, values: Tensor) -> Tensor:
        return all_reduce(values if self.counts else values * 0, group=self.group)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise(network: nn.Module, ranks: Ranks) -> int:
    """Let every BatchNorm of a network see the whole batch; how many there are."""
    found = 0
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, Synchronised(child, ranks.gradients))
                found += 1
    return found
