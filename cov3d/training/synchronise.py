"""BatchNorm over the scans of all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from cov3d.training.ranks import Ranks


class _Sum(torch.autograd.Function):
    """The sum over processes; what each makes of it counts for all, so that gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = values.clone()
        ranks.add_up([total])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        ctx.ranks.add_up([total])
        return total, None


class Synchronised(_BatchNorm):
    """A BatchNorm that normalises ``(B, C, ...)`` by the statistics of the whole batch, whose gradients go to all processes.

    Its parameters and buffers are those of the one whose place it takes. torch's own is for GPUs alone; this one is for any
    device, so that it can be compared with one process that has the whole batch.
    """

    counts = True  # whether this process has a share of the batch
    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def __init__(self, norm: _BatchNorm, ranks: Ranks):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.ranks = ranks
        for name, values in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(self, name, values)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training by all processes' batch, else by the running statistics."""
        if not self.training:
            return super().forward(x)
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

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes."""

    def _sum(self, values: Tensor) -> Tensor:
        return _Sum.apply(values if self.counts else values * 0, self.ranks)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.num_batches_tracked is not None:  # as where activations are computed again
            self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise(network: nn.Module, ranks: Ranks) -> None:
    """Let every BatchNorm of a network see the whole batch."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, Synchronised(child, ranks))
