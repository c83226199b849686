"""The names of 2D ConvNeXts' and ResNets' tensors, by Meta, timm and torchvision, and the names that they have here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from cov3d.errors import ModelError

HEAD = "head."
GRN = ".grn."  # global response normalisation, which only ConvNeXt V2 has

Renaming = list[tuple[str, str]]


class Scheme(NamedTuple):
    """Who names tensors so, of which kind of network, by which kernel it is known, and how the names become ours."""

    who: str
    kind: str
    known_by: str
    renaming: Renaming


CONVNEXT, RESNET = "ConvNeXt", "ResNet-18"
SCHEMES = (
    Scheme("Meta", CONVNEXT, r"stages\.[0-3]\.\d+\.dwconv\.weight", []),
    Scheme(
        "timm",
        CONVNEXT,
        r"stages\.[0-3]\.blocks\.\d+\.conv_dw\.weight",
        [
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.([1-3])\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.([0-3])\.blocks\.", r"stages.\1."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
            (r"^(head\.norm|norm_pre)\.", "norm."),
        ],
    ),
    Scheme(
        "torchvision",
        CONVNEXT,
        r"features\.[1357]\.\d+\.block\.0\.weight",
        [
            *((rf"^features\.{2 * k}\.", f"downsample_layers.{k}.") for k in range(4)),
            *((rf"^features\.{2 * k + 1}\.", f"stages.{k}.") for k in range(4)),
            (r"\.block\.0\.", ".dwconv."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".pwconv1."),
            (r"\.block\.5\.", ".pwconv2."),
            (r"\.layer_scale$", ".gamma"),
            (r"^classifier\.0\.", "norm."),
            (r"^classifier\.2\.", HEAD),
        ],
    ),
    Scheme(  # and timm, which took its names over
        "torchvision",
        RESNET,
        r"layer[1-4]\.\d+\.conv1\.weight",
        [
            (r"^conv1\.", "stem.0."),
            (r"^bn1\.", "stem.1."),
            (r"^(layer[1-4]\.\d+)\.conv([12])\.", r"\1.conv\2.0."),
            (r"^(layer[1-4]\.\d+)\.bn([12])\.", r"\1.conv\2.1."),
            (r"^fc\.", HEAD),
        ],
    ),
)
# By which 3D weights are known that are as ours.
OURS_3D = (r"stages\.[0-3]\.\d+\.dwconv\.weight", r"layer[1-4]\.\d+\.conv1\.0(\.0)?\.weight")


def scheme(tensors: Mapping[str, Tensor]) -> Scheme | None:
    """Whose names these tensors have, if they are a 2D ConvNeXt's or ResNet's."""
    return next((found for found in SCHEMES if has_kernel(tensors, found.known_by, 2)), None)


def has_kernel(tensors: Mapping[str, Tensor], pattern: str, axes: int) -> bool:
    """Whether there is a convolution's kernel of so many axes by such a name."""
    return any(tensor.dim() == 2 + axes and re.fullmatch(pattern, name) for name, tensor in tensors.items())


def renamed(tensors: Mapping[str, Tensor], kind: str, source: str) -> dict[str, str]:
    """By our name, the source's name of every tensor that is not of its head; ``kind`` is the network's that asks.

    Raises:
        ModelError: they are 3D already, of another kind of network or of none, or one is there twice.
    """
    if any(GRN in name for name in tensors):
        raise ModelError(f"{source} holds ConvNeXt V2 weights, whose blocks are others (GRN); choose ConvNeXt's own")
    if any(has_kernel(tensors, pattern, 3) for pattern in OURS_3D):
        raise ModelError(f"{source} holds 3D weights already; leave --inflate out")
    found = scheme(tensors)
    if found is None:
        whose = ", ".join(one.who for one in SCHEMES if one.kind == kind)
        raise ModelError(f"{source} holds no 2D {kind} of {whose}, by its names; choose other --weights")
    if found.kind != kind:
        raise ModelError(
            f"{source} holds a 2D {found.kind}, and the network is a {kind}; choose the --architecture it is of"
        )
    names: dict[str, str] = {}
    for other in tensors:
        name = other
        for pattern, ours in found.renaming:
            name = re.sub(pattern, ours, name)
        if name in names:
            raise ModelError(f"{source} holds {names[name]} and {other}, which are the same; choose other --weights")
        names[name] = other
    return {name: other for name, other in names.items() if not name.startswith(HEAD)}
