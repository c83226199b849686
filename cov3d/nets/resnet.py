"""3D ResNets of 18 layers: R3D, MC3 and R(2+1)D, made to read chest CT.

The networks are those of Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018
(arXiv 1711.11248), in torchvision's reading: every parameter of the stem and of layer1…layer4 has the name it has
there, so that Kinetics-400 weights load by name. The surgery for CT is that of Turnbull (arXiv 2207.12218):
one input channel, dropout after each of the four stages, global pooling, a head with one hidden layer.

    stage    channels   out of (D, H, W)              MC3, which never strides depth
    stem     w          (D,   H/2,  W/2)              (D, H/2,  W/2)
    layer1   w          (D,   H/2,  W/2)              (D, H/2,  W/2)
    layer2   2w         (D/2, H/4,  W/4)              (D, H/4,  W/4)
    layer3   4w         (D/4, H/8,  W/8)              (D, H/8,  W/8)
    layer4   8w         (D/8, H/16, W/16)             (D, H/16, W/16)

w is ``base_width``, 64 as published. Each halving rounds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from cov3d.config import NetSettings
from cov3d.labels import LOGITS
from cov3d.nets.encoder import Encoder
from cov3d.nets.pool import POOLS

# (inputs, outputs, middle, stride) -> a convolution; only the factored one has middle channels.
Convolution = Callable[[int, int, int, int], nn.Module]


def resnet18(settings: NetSettings) -> ResNet:
    """R3D-18: every convolution is 3×3×3."""
    return ResNet(settings, joint_stem, [joint] * 4)


def mc3_18(settings: NetSettings) -> ResNet:
    """MC3-18, mixed convolutions: 3×3×3 in the stem and layer1, 1×3×3 after that, so that no stage strides depth."""
    return ResNet(settings, joint_stem, [joint, flat, flat, flat])


def r2plus1d_18(settings: NetSettings) -> ResNet:
    """R(2+1)D-18: every convolution is a 1×3×3 one, BatchNorm and ReLU, then a 3×1×1 one."""
    return ResNet(settings, factored_stem, [factored] * 4)


class ResNet(Encoder):
    """A 3D ResNet of 18 layers: ``(B, 1, D, H, W)`` float → logits ``(B, 6)`` (:mod:`cov3d.labels`)."""

    def __init__(self, settings: NetSettings, stem: Callable[[int], nn.Module], convolutions: Sequence[Convolution]):
        super().__init__()
        numbers = settings.numbers
        w = numbers.base_width
        self.widths = (w, 2 * w, 4 * w, 8 * w)
        self.stem = stem(w)
        self.layer1 = stage(w, w, convolutions[0], stride=1)
        self.layer2 = stage(w, 2 * w, convolutions[1], stride=2)
        self.layer3 = stage(2 * w, 4 * w, convolutions[2], stride=2)
        self.layer4 = stage(4 * w, 8 * w, convolutions[3], stride=2)
        self.dropout = nn.Dropout(numbers.dropout)  # never in place: the ReLU before it needs its output for backward
        self.pool = POOLS[settings.pool]
        self.head = nn.Sequential(
            nn.Linear(8 * w, numbers.penultimate),
            nn.ReLU(),
            nn.Dropout(numbers.dropout),
            nn.Linear(numbers.penultimate, LOGITS),
        )
        self.apply(initialise)

    def answer(self, features: Tensor) -> Tensor:
        x = self.pool(features)  # (B, 8w, D/8, H/16, W/16) -> (B, 8w)
        return self.head(x)  # (B, 8w) -> (B, 6)

    def stage_maps(self, x: Tensor) -> Iterator[Tensor]:
        """What layer1…layer4 give, after dropout: w, 2w, 4w, 8w channels."""
        x = self.stem(x)  # (B, 1, D, H, W) -> (B, w, D, H/2, W/2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self.through(block, x)
            x = self.dropout(x)  # from layer2 on: twice the channels, half of D, H and W
            yield x


class Block(nn.Module):
    """A residual block: two convolutions and a shortcut around them, ``(B, inputs, …)`` → ``(B, outputs, …)``."""

    def __init__(self, inputs: int, outputs: int, convolution: Convolution, stride: int):
        super().__init__()
        # So many middle channels that a factored convolution has as many weights as a joint one (Tran et al., section
        # 3.5). As in torchvision both convolutions have those of the first; the weights are of that shape.
        middle = (inputs * outputs * 27) // (inputs * 9 + outputs * 3)
        self.conv1 = nn.Sequential(
            convolution(inputs, outputs, middle, stride), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(convolution(outputs, outputs, middle, 1), nn.BatchNorm3d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, outputs, convolution, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        out += self.downsample(x)  # in place: feature maps are most of the memory, and BatchNorm's output is not needed
        return self.relu(out)


def stage(inputs: int, outputs: int, convolution: Convolution, stride: int) -> nn.Sequential:
    """Two blocks, the first of which strides: ``(B, inputs, D, H, W)`` → ``(B, outputs, D/stride, …)``."""
    return nn.Sequential(Block(inputs, outputs, convolution, stride), Block(outputs, outputs, convolution, 1))


def shortcut(inputs: int, outputs: int, convolution: Convolution, stride: int) -> nn.Module:
    """The identity where a block keeps its shape, else a 1×1×1 convolution that strides as the block does."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    depth_stride = 1 if convolution is flat else stride
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 1, (depth_stride, stride, stride), bias=False), nn.BatchNorm3d(outputs)
    )


def joint(inputs: int, outputs: int, middle: int, stride: int) -> nn.Module:
    """A 3×3×3 convolution."""
    return nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)


def flat(inputs: int, outputs: int, middle: int, stride: int) -> nn.Module:
    """A 1×3×3 convolution: each slice by itself."""
    return nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False)


def factored(inputs: int, outputs: int, middle: int, stride: int) -> nn.Module:
    """A (2+1)D convolution: 1×3×3 within the slices, then 3×1×1 across them, a nonlinearity between."""
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False),
    )


def joint_stem(width: int) -> nn.Module:
    """A 3×7×7 convolution that halves H and W and leaves D: ``(B, 1, D, H, W)`` → ``(B, w, D, H/2, W/2)``."""
    return nn.Sequential(
        nn.Conv3d(1, width, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def factored_stem(width: int) -> nn.Module:
    """The same in two steps, 1×7×7 and 3×1×1, through 45 channels where w is 64."""
    middle = 45 * width // 64
    return nn.Sequential(
        nn.Conv3d(1, middle, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def initialise(module: nn.Module) -> None:
    """He initialisation of convolutions by their fan out, as torchvision's; the rest begins as torch lets it."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
