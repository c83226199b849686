"""3D ConvNeXt: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (arXiv 2201.03545), with a third axis.

As Kienzle et al. use it for chest CT ("COVID detection and severity prediction with 3D-ConvNeXt and custom pretrainings",
arXiv 2206.15073): every kernel is a cube, one input channel, a head with one hidden layer. Parameters have the names of
Meta's 2D code, so that 2D weights are inflated by name (:mod:`cov3d.nets.inflate`).

    stage   channels   out of (D, H, W)           blocks of micro, tiny, small and base
    stem    w          (D/4,  H/4,  W/4)
    0       w          (D/4,  H/4,  W/4)           3    3    3    3
    1       2w         (D/8,  H/8,  W/8)           3    3    3    3
    2       4w         (D/16, H/16, W/16)          6    9    27   27
    3       8w         (D/32, H/32, W/32)          3    3    3    3

w is ``base_width``: 64, 96, 96, 128. Each quotient rounds up: where a stride does not divide a side, its far end is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cov3d.config import LEAST_SIDE, NetSettings
from cov3d.errors import SettingError
from cov3d.labels import LOGITS
from cov3d.nets.depthwise import Depthwise
from cov3d.nets.encoder import Encoder
from cov3d.nets.pool import POOLS

BLOCKS = {
    "convnext-micro": (3, 3, 6, 3),
    "convnext-tiny": (3, 3, 9, 3),
    "convnext-small": (3, 3, 27, 3),
    "convnext-base": (3, 3, 27, 3),
}
# Grey levels of ImageNet, over its three colours: what 2D weights were trained on. Without the mean taken away, the LayerNorm
# after the stem would leave nothing of how bright an even patch is, and the network learns nothing from scans.
MEAN, DEVIATION = 0.449, 0.226
EPSILON = 1e-6  # of every LayerNorm
LAYER_SCALE = 1e-6  # where it begins


def convnext(settings: NetSettings) -> ConvNeXt:
    """A ConvNeXt of the size that its architecture names."""
    return ConvNeXt(settings)


class ConvNeXt(Encoder):
    """A 3D ConvNeXt: ``(B, 1, D, H, W)`` float, sides of at least 32 → logits ``(B, 6)`` (:mod:`cov3d.labels`).

    With other convolutions and another head it is a 2D one (:mod:`cov3d.nets.flat`).
    """

    def __init__(
        self,
        settings: NetSettings,
        patches: Callable[[int, int, int], nn.Module] | None = None,
        depthwise: Callable[[int, int], nn.Module] = Depthwise,
        head: nn.Module | None = None,
    ):
        super().__init__()
        patches = patches or Patches
        numbers = settings.numbers
        self.widths = widths = tuple(numbers.base_width * 2**stage for stage in range(4))
        blocks = BLOCKS[settings.architecture]
        drops = torch.linspace(0, numbers.drop_path, sum(blocks), device="cpu").split(blocks)  # deeper, likelier
        stem = nn.Sequential(patches(1, widths[0], 4), ChannelNorm(widths[0], EPSILON))
        between = [
            nn.Sequential(ChannelNorm(inputs, EPSILON), patches(inputs, outputs, 2))
            for inputs, outputs in pairwise(widths)
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, float(drop), depthwise) for drop in drop_paths))
            for width, drop_paths in zip(widths, drops, strict=True)
        )
        self.pool = POOLS[settings.pool]
        self.norm = nn.LayerNorm(widths[-1], EPSILON)
        self.head = head or nn.Sequential(
            nn.Linear(widths[-1], numbers.penultimate),
            nn.ReLU(),
            nn.Dropout(numbers.dropout),
            nn.Linear(numbers.penultimate, LOGITS),
        )
        self.apply(initialise)

    def answer(self, features: Tensor) -> Tensor:
        x = self.norm(self.pool(features))  # (B, 8w, D/32, H/32, W/32) -> (B, 8w)
        return self.head(x)  # (B, 8w) -> (B, 6)

    def stage_maps(self, x: Tensor) -> Iterator[Tensor]:
        """What the four stages give: w, 2w, 4w, 8w channels."""
        if min(x.shape[2:]) < LEAST_SIDE:
            sides = "×".join(map(str, x.shape[2:]))
            raise SettingError(f"a ConvNeXt needs sides of at least {LEAST_SIDE} voxels, got {sides}; raise --width")
        x = (padded(x, 4) - MEAN) / DEVIATION  # air, not the mean, at the far end
        for shrink, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = shrink(x)  # the stem a quarter of D, H and W, the others half of each
            for block in stage.children():
                x = self.through(block, x)
            yield x


class Block(nn.Module):
    """A residual block, ``(B, C, D, H, W)`` → the same: each channel over space, then each voxel over channels."""

    def __init__(self, width: int, drop_path: float, depthwise: Callable[[int, int], nn.Module] = Depthwise):
        super().__init__()
        self.dwconv = depthwise(width, 7)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.empty(width).fill_(LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dwconv(x).movedim(1, -1)  # (B, C, D, H, W) -> (B, D, H, W, C)
        out = self.pwconv2(self.act(self.pwconv1(self.norm(out))))
        return x + self.drop_path((self.gamma * out).movedim(-1, 1))


class Patches(nn.Conv3d):
    """A convolution whose kernel is its stride: cubes of ``side`` voxels become one, ``(B, C, D, H, W)`` → ``(…, D/side, …)``."""

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__(inputs, outputs, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(padded(x, self.stride[0]))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each voxel: ``(B, C, D, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): in training a scan's branch is left out with probability ``rate``."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device, dtype=x.dtype) >= self.rate
        return x * kept / (1 - self.rate)


def padded(x: Tensor, side: int) -> Tensor:
    """``(B, C, D, H, W)`` with zeros at the far ends, until ``side`` divides D, H and W; so, too, without D."""
    ends = [end for n in reversed(x.shape[2:]) for end in (0, -n % side)]
    return F.pad(x, ends) if any(ends) else x


def initialise(module: nn.Module) -> None:
    """Weights from a normal distribution of standard deviation .02, biases 0, as in Meta's code."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
