"""2D networks of one channel, whose weights a 3D network is started with: ``cov3d pretrain --method imagenet``.

Fitted to pictures (:mod:`cov3d.training.pictures`), then given a third axis (:mod:`cov3d.nets.inflate`). They are the 3D
networks without it: a picture ``(B, 1, H, W)`` in [0, 1] goes through the same stages, and where weights are inflated
``full`` by their sum, a volume that shows the picture in every slice is answered by the same features.

So the 2D ConvNeXt has Meta's names and takes ImageNet's grey levels away inside, and the 2D ResNet-18 has torchvision's
names, but not its max pooling after the stem, which no 3D ResNet of 18 layers has.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from cov3d.config import NetSettings
from cov3d.config.pictures import FLAT
from cov3d.errors import SettingError
from cov3d.nets.convnext import ConvNeXt, padded
from cov3d.nets.encoder import Encoder
from cov3d.nets.pool import POOLS
from cov3d.nets.resnet import initialise


def build_flat(settings: NetSettings, classes: int) -> Encoder:
    """The 2D network of an architecture, with random weights: ``(B, 1, H, W)`` → logits ``(B, K)``.

    Raises:
        SettingError: it has none in 2D, since its convolutions differ along depth.
    """
    if settings.architecture not in FLAT:
        raise SettingError(
            f"--architecture {settings.architecture} has no 2D weights to begin with; choose one of {', '.join(FLAT)}"
        )
    if settings.family == "resnet":
        return FlatResNet(settings, classes)
    head = nn.Linear(8 * settings.numbers.base_width, classes)
    return ConvNeXt(settings, FlatPatches, flat_depthwise, head)


class FlatPatches(nn.Conv2d):
    """A convolution whose kernel is its stride: ``(B, C, H, W)`` → ``(B, …, H/side, W/side)``, rounded up."""

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__(inputs, outputs, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(padded(x, self.stride[0]))


def flat_depthwise(width: int, side: int) -> nn.Conv2d:
    """A convolution of each channel by itself, its output as large as its input: ``(B, C, H, W)``."""
    return nn.Conv2d(width, width, side, padding=side // 2, groups=width)


class FlatResNet(Encoder):
    """A ResNet of 18 layers (He et al., arXiv 1512.03385) without max pooling: ``(B, 1, H, W)`` → logits ``(B, K)``.

    The stem halves H and W, and so do layer2, layer3 and layer4; each halving rounds up.
    """

    def __init__(self, settings: NetSettings, classes: int):
        super().__init__()
        w = settings.numbers.base_width
        self.widths = (w, 2 * w, 4 * w, 8 * w)
        self.conv1 = nn.Conv2d(1, w, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(block(inputs, outputs), block(outputs, outputs))
            for inputs, outputs in pairwise((w, *self.widths))
        )
        self.pool = POOLS[settings.pool]
        self.fc = nn.Linear(8 * w, classes)
        self.apply(initialise)

    def answer(self, features: Tensor) -> Tensor:
        return self.fc(self.pool(features))  # (B, 8w, H/16, W/16) -> (B, 8w) -> (B, K)

    def stage_maps(self, x: Tensor) -> Iterator[Tensor]:
        """What layer1…layer4 give: w, 2w, 4w, 8w channels."""
        x = self.relu(self.bn1(self.conv1(x)))  # (B, 1, H, W) -> (B, w, H/2, W/2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for part in layer:
                x = self.through(part, x)
            yield x


def block(inputs: int, outputs: int) -> BasicBlock:
    """torchvision's residual block; where it widens, it halves H and W."""
    if inputs == outputs:
        return BasicBlock(inputs, outputs)
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)
