"""2D ConvNeXt weights made into those of a 3D ConvNeXt: ``--weights FILE --inflate full|1g|2g``.

Kienzle et al. (arXiv 2206.15073), after I3D (Carreira and Zisserman, arXiv 1705.07750). Every k×k kernel K becomes a cube
A[d, h, w], where g(j) = exp(−(j − µ)² / 2σ²), µ = (k − 1)/2 and σ = k/8:

    full    γ K[h, w]
    1g      γ K[h, w] g(d)
    2g      γ (K[h, w] g(d) + K[h, d] g(w))

There is one γ for each tensor of kernels. By the norm ``l2``, the paper's, A has the Euclidean norm of K. By ``sum``, as
in I3D and the paper's code, γ is 1/Σg, for 2g half of that, and for full 1/k: the total of the weights that K is spread by
and not a quotient of sums, since a kernel's sum may be 0. Then A has the sum of K, and on a volume that is constant along
depth full and 1g give the 2D network's answer; 2g does so only where nothing varies along w either.

Otherwise than published: the paper's µ = k/2 lies half a voxel beside the kernel's centre if indices begin at 0. Its code
has µ = k//2 and σ = µ/4, which for k = 2 is one-sided, and renormalises 1g within its loop. For 2g the paper
prints K[h, w] twice; the second copy lies in the (h, d) plane, as in its code. Vectors and matrices are as they were, RGB
stems are summed over their colours first, and the head is new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cov3d.config import PUBLISHED_NETS
from cov3d.errors import ModelError
from cov3d.nets.convnext import BLOCKS

STEM = "downsample_layers.0.0.weight"
HEAD = "head."
GRN = ".grn."  # global response normalisation, which only ConvNeXt V2 has

# How the source's names become Meta's, which are ours, and by which name it is known.
KNOWN_BY = {
    "Meta": r"stages\.[0-3]\.\d+\.dwconv\.weight",
    "timm": r"stages\.[0-3]\.blocks\.\d+\.conv_dw\.weight",
    "torchvision": r"features\.[1357]\.\d+\.block\.0\.weight",
}
RENAMING: dict[str, list[tuple[str, str]]] = {
    "Meta": [],
    "timm": [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.([1-3])\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.([0-3])\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc([12])\.", r".pwconv\1."),
        (r"^(head\.norm|norm_pre)\.", "norm."),
    ],
    "torchvision": [
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
}


class Inflated(NamedTuple):
    """What became of a 2D ConvNeXt's tensors; all names are of the 3D network but those of the head."""

    tensors: dict[str, Tensor]
    kernels: tuple[str, ...]  # those that were given a third axis
    summed: tuple[str, ...]  # those of them that were summed over RGB
    head: tuple[str, ...]  # of the source's head, not used, by their own names


class Plan(NamedTuple):
    """The size of a ConvNeXt."""

    base_width: int
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.base_width} channels and {', '.join(map(str, self.blocks))} blocks"


def inflate(tensors: Mapping[str, Tensor], net: nn.Module, how: str, norm: str, source: str) -> Inflated:
    """All of a 2D ConvNeXt's tensors as ``net``, a 3D ConvNeXt, has them, without the head; ``source`` names the file.

    Raises:
        ModelError: they are no 2D ConvNeXt's, of another size, one of them is unknown or has another shape, or one is missing.
    """
    own = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(HEAD)}
    theirs = renamed(tensors, source)
    body = {name: tensors[other] for name, other in theirs.items()}
    check_plan(body, own, source)
    check_names(theirs, own, source)
    for name, other in theirs.items():
        check_shape(name, body[name], own[name].shape, f"{source}: {other}")
    kernels = tuple(name for name in own if own[name].dim() == 5)
    summed = (STEM,) if body[STEM].shape[1] == 3 else ()
    for name in summed:
        body[name] = body[name].double().sum(1, keepdim=True)  # (w, 3, k, k) -> (w, 1, k, k)
    for name in own:
        body[name] = inflate_kernel(body[name], how, norm) if name in kernels else body[name].reshape(own[name].shape)
    return Inflated(body, kernels, summed, head=tuple(name for name in tensors if name not in theirs.values()))


def inflate_kernel(kernel: Tensor, how: str, norm: str) -> Tensor:
    """Kernels ``(O, I, k, k)`` → ``(O, I, k, k, k)``, by ``how`` (full, 1g, 2g) and ``norm`` (l2, sum)."""
    flat, k = kernel.double(), kernel.shape[-1]
    weights = torch.ones(k, dtype=torch.float64) if how == "full" else gaussian(k)
    cube = flat[:, :, None] * weights[:, None, None]  # K[h, w] g(d)
    total = weights.sum()
    if how == "2g":
        cube = cube + flat.transpose(2, 3)[..., None] * weights  # K[h, d] g(w)
        total = 2 * total
    if norm == "sum":
        return (cube / total).float()
    return (cube * (flat.norm() / cube.norm().clamp(min=1e-300))).float()  # kernels of zeros stay so


def gaussian(k: int) -> Tensor:
    """g(0) … g(k − 1), about the middle, float64."""
    return torch.exp(-((torch.arange(k, dtype=torch.float64) - (k - 1) / 2) ** 2) / (2 * (k / 8) ** 2))


def scheme(tensors: Mapping[str, Tensor], axes: int = 2) -> str | None:
    """Whose names these tensors have if they are a ConvNeXt's of so many axes: Meta's, timm's or torchvision's."""
    names = [name for name, tensor in tensors.items() if tensor.dim() == 2 + axes]
    return next((who for who, known in KNOWN_BY.items() if any(re.fullmatch(known, name) for name in names)), None)


def renamed(tensors: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """By our name, the source's name of every tensor that is not of its head."""
    if any(GRN in name for name in tensors):
        raise ModelError(f"{source} holds ConvNeXt V2 weights, whose blocks are others (GRN); choose ConvNeXt's own")
    if scheme(tensors, axes=3):
        raise ModelError(f"{source} holds 3D weights already; leave --inflate out")
    who = scheme(tensors)
    if who is None:
        raise ModelError(
            f"{source} holds no 2D ConvNeXt of {', '.join(RENAMING)}, by its names; choose other --weights"
        )
    names: dict[str, str] = {}
    for other in tensors:
        name = other
        for pattern, ours in RENAMING[who]:
            name = re.sub(pattern, ours, name)
        if name in names:
            raise ModelError(f"{source} holds {names[name]} and {other}, which are the same; choose other --weights")
        names[name] = other
    return {name: other for name, other in names.items() if not name.startswith(HEAD)}


def check_plan(body: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse a network of another size, with the architecture that it fits if there is one."""
    if STEM not in body or body[STEM].dim() != 4:
        return  # what is missing or of another shape is named later
    there, here = plan(body), plan(own)
    if there == here:
        return
    same = [name for name, blocks in BLOCKS.items() if blocks == there.blocks]
    same.sort(key=lambda name: PUBLISHED_NETS[name].base_width != there.base_width)
    advice = f"--architecture {same[0]} --base-width {there.base_width}" if same else "other --weights"
    raise ModelError(f"{source} has {there}, and the network {here}; choose {advice}")


def plan(tensors: Mapping[str, Tensor]) -> Plan:
    """The size of the ConvNeXt with these tensors, in our names."""
    blocks = [0, 0, 0, 0]
    for name in tensors:
        if found := re.match(r"stages\.([0-3])\.([0-9]{1,4})\.", name):
            stage, block = map(int, found.groups())
            blocks[stage] = max(blocks[stage], block + 1)
    return Plan(len(tensors[STEM]), tuple(blocks))


def check_names(theirs: Mapping[str, str], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse a tensor that no ConvNeXt has, and a ConvNeXt that lacks one."""
    for name, other in theirs.items():
        if name not in own:
            raise ModelError(f"{source}: {other} is not known in a 2D ConvNeXt; choose other --weights")
    for name in own:
        if name not in theirs:
            raise ModelError(f"{source}: {name}, as Meta calls it, is missing; choose other --weights")


def check_shape(name: str, tensor: Tensor, ours: torch.Size, theirs: str) -> None:
    """Refuse a tensor from which the one of ours cannot be made; ``theirs`` names it in the error."""
    shape, wanted = tuple(tensor.shape), tuple(ours)
    if len(wanted) == 5:
        wanted = wanted[:2] + wanted[3:]  # without the axis that is new
        fits = shape == wanted or (name == STEM and shape == (wanted[0], 3, *wanted[2:]))
    else:  # a layer scale may be (C, 1, 1), a matrix (4C, C, 1, 1)
        fits = shape[: len(wanted)] == wanted and tensor.numel() == ours.numel()
    if not fits:
        sizes = ("×".join(map(str, sides)) or "a number" for sides in (shape, wanted))
        raise ModelError(f"{theirs} is {', not '.join(sizes)}; choose other --weights")
