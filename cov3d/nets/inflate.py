"""2D weights made into those of a 3D ConvNeXt or ResNet-18: ``--weights FILE --inflate full|1g|2g``.

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

The paper has ConvNeXts only. Of a ResNet-18 the stem's 7×7 kernel becomes 3×7×7: g is of 3 places, and since its planes are
not alike, 2g is 1g there. Its 1×1 kernels get no weights but their own. The 2D network pools by maximum after the stem,
torchvision's at least; the 3D one does not, so it meets the features at twice the size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cov3d.config import PUBLISHED_NETS
from cov3d.errors import ModelError, SettingError
from cov3d.nets.convnext import BLOCKS
from cov3d.nets.inflate_names import CONVNEXT, HEAD, RESNET, renamed

STEMS = {CONVNEXT: "downsample_layers.0.0.weight", RESNET: "stem.0.weight"}
COUNTER = "num_batches_tracked"  # of BatchNorm: how many it has seen, which weights of long ago do not say


class Inflated(NamedTuple):
    """What became of a 2D network's tensors; all names are of the 3D network but those of the head."""

    tensors: dict[str, Tensor]
    kernels: tuple[str, ...]  # those that were given a third axis
    summed: tuple[str, ...]  # those of them that were summed over RGB
    head: tuple[str, ...]  # of the source's head, not used, by their own names


class Plan(NamedTuple):
    """The size of a network."""

    base_width: int
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.base_width} channels and {', '.join(map(str, self.blocks))} blocks"


def inflate(tensors: Mapping[str, Tensor], net: nn.Module, how: str, norm: str, source: str) -> Inflated:
    """All of a 2D network's tensors as ``net``, the 3D one, has them, without the head; ``source`` names the file.

    Raises:
        ModelError: they are not of ``net``'s kind in 2D, of another size, one of them is unknown or has another shape, or one
            is missing.
    """
    own = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(HEAD)}
    kind = CONVNEXT if STEMS[CONVNEXT] in own else RESNET
    theirs = renamed(tensors, kind, source)
    body = {name: tensors[other] for name, other in theirs.items()}
    stem = STEMS[kind]
    check_plan(body, own, kind, source)
    check_names(theirs, own, kind, source)
    for name, other in theirs.items():
        check_shape(body[name], own[name].shape, f"{source}: {other}", colours=name == stem)
    kernels = tuple(name for name in body if own[name].dim() == 5)
    summed = (stem,) if body[stem].shape[1] == 3 else ()
    for name in summed:
        body[name] = body[name].double().sum(1, keepdim=True)  # (w, 3, k, k) -> (w, 1, k, k)
    for name in body:
        shape = own[name].shape
        body[name] = inflate_kernel(body[name], how, norm, shape[2]) if name in kernels else body[name].reshape(shape)
    return Inflated(body, kernels, summed, head=tuple(name for name in tensors if name not in theirs.values()))


def inflate_kernel(kernel: Tensor, how: str, norm: str, depth: int | None = None) -> Tensor:
    """Kernels ``(O, I, k, k)`` → ``(O, I, depth, k, k)``, by ``how`` (full, 1g, 2g) and ``norm`` (l2, sum).

    ``depth`` is k if not said. Where it is another, there are no planes to exchange, and 2g is 1g.
    """
    if how not in ("full", "1g", "2g") or norm not in ("l2", "sum"):
        raise SettingError(f"--inflate {how} with --inflate-norm {norm} is not one of full, 1g, 2g with l2, sum")
    if kernel.dim() != 4 or kernel.shape[2] != kernel.shape[3]:
        raise SettingError(f"a kernel to inflate is (O, I, k, k), not {tuple(kernel.shape)}")
    flat, depth = kernel.double(), depth or kernel.shape[-1]
    weights = torch.ones(depth, dtype=torch.float64) if how == "full" else gaussian(depth)
    cube = flat[:, :, None] * weights[:, None, None]  # K[h, w] g(d)
    total = weights.sum()
    if how == "2g" and depth == kernel.shape[-1]:
        cube = cube + flat.transpose(2, 3)[..., None] * weights  # K[h, d] g(w)
        total = 2 * total
    if norm == "sum":
        return (cube / total).float()
    return (cube * (flat.norm() / cube.norm().clamp(min=1e-300))).float()  # kernels of zeros stay so


def gaussian(k: int) -> Tensor:
    """g(0) … g(k − 1), about the middle, float64."""
    return torch.exp(-((torch.arange(k, dtype=torch.float64) - (k - 1) / 2) ** 2) / (2 * (k / 8) ** 2))


def check_plan(body: Mapping[str, Tensor], own: Mapping[str, Tensor], kind: str, source: str) -> None:
    """Refuse a network of another size, with the architecture that it fits if there is one."""
    stem = STEMS[kind]
    if stem not in body or body[stem].dim() != 4:
        return  # what is missing or of another shape is named later
    there, here = plan(body, kind), plan(own, kind)
    if there == here:
        return
    sizes = BLOCKS if kind == CONVNEXT else {"resnet18": plan(own, kind).blocks}
    same = [name for name, blocks in sizes.items() if blocks == there.blocks]
    same.sort(key=lambda name: PUBLISHED_NETS[name].base_width != there.base_width)
    advice = f"--architecture {same[0]} --base-width {there.base_width}" if same else "other --weights"
    raise ModelError(f"{source} has {there}, and the network {here}; choose {advice}")


def plan(tensors: Mapping[str, Tensor], kind: str) -> Plan:
    """The size of the network with these tensors, in our names."""
    blocks = [0, 0, 0, 0]
    pattern, first = (r"stages\.([0-3])", 0) if kind == CONVNEXT else (r"layer([1-4])", 1)
    for name in tensors:
        if found := re.match(rf"{pattern}\.([0-9]{{1,4}})\.", name):
            stage, block = int(found[1]) - first, int(found[2])
            blocks[stage] = max(blocks[stage], block + 1)
    return Plan(len(tensors[STEMS[kind]]), tuple(blocks))


def check_names(theirs: Mapping[str, str], own: Mapping[str, Tensor], kind: str, source: str) -> None:
    """Refuse a tensor that no such network has, and a network that lacks one."""
    for name, other in theirs.items():
        if name not in own:
            raise ModelError(f"{source}: {other} is not known in a 2D {kind}; choose other --weights")
    for name in own:
        if name not in theirs and not name.endswith(COUNTER):
            named = f"{name}, as Meta calls it," if kind == CONVNEXT else f"what becomes {name}"
            raise ModelError(f"{source}: {named} is missing; choose other --weights")


def check_shape(tensor: Tensor, ours: torch.Size, theirs: str, colours: bool) -> None:
    """Refuse a tensor from which ours cannot be made; ``theirs`` names it, and ``colours`` says whether it may see three."""
    shape, wanted = tuple(tensor.shape), tuple(ours)
    if len(wanted) == 5:
        wanted = wanted[:2] + wanted[3:]  # without the axis that is new
        fits = shape == wanted or (colours and shape == (wanted[0], 3, *wanted[2:]))
    else:  # a layer scale may be (C, 1, 1), a matrix (4C, C, 1, 1)
        fits = shape[: len(wanted)] == wanted and tensor.numel() == ours.numel()
    if not fits:
        sizes = ("×".join(map(str, sides)) or "a number" for sides in (shape, wanted))
        raise ModelError(f"{theirs} is {', not '.join(sizes)}; choose other --weights")
