"""The depthwise convolution of ConvNeXt: torch's own forward, and on a CPU a backward many times faster than torch's.

torch's ``convolution_backward`` of a depthwise 7×7×7 takes two thirds to four fifths of a ConvNeXt's training step on a
CPU. The gradients are convolutions themselves: the input's is the output's gradient convolved with the kernel turned over;
the weight's is the correlation of input and output's gradient at as many places as the kernel has, taken by FFT.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn


class Depthwise(nn.Conv3d):
    """A convolution of each channel by itself, its side odd, its output as large as its input: ``(B, C, D, H, W)``."""

    def __init__(self, width: int, side: int):
        super().__init__(width, width, side, padding=side // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        assert self.bias is not None  # it is never without
        return _Depthwise.apply(x, self.weight) + self.bias[:, None, None, None]


class _Depthwise(torch.autograd.Function):
    """The convolution without its bias."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)  # under autocast it comes in half precision
        of_x = _convolve(gradient, weight.flip(2, 3, 4)) if ctx.needs_input_grad[0] else None
        of_weight = correlate(x, gradient, weight.shape[2:]) if ctx.needs_input_grad[1] else None
        return of_x, of_weight


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, padding=[side // 2 for side in weight.shape[2:]], groups=len(weight))


def correlate(x: Tensor, gradient: Tensor, sides: torch.Size) -> Tensor:
    """The weight's gradient ``(C, 1, kd, kh, kw)``: Σ over scans and voxels p of gradient(p) · x(p + offset)."""
    size = [next_fast_len(n + side - 1, real=True) for n, side in zip(x.shape[2:], sides, strict=True)]
    axes = (-3, -2, -1)
    least = torch.promote_types(x.dtype, torch.float32)  # FFTs of half precision there are none
    spectrum = torch.fft.rfftn(x.to(least), size, axes) * torch.fft.rfftn(gradient.to(least), size, axes).conj()
    whole = torch.fft.irfftn(spectrum.sum(0), size, axes)  # (C, …): place m holds offset m, negative ones from the end
    for axis, side in zip(axes, sides, strict=True):
        offsets = torch.arange(-(side // 2), side // 2 + 1, device=x.device) % whole.shape[axis]
        whole = whole.index_select(axis, offsets)
    return whole[:, None].to(x.dtype)
