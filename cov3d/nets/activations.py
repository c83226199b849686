"""How large a network's activations are: convolutions on a GPU count no more than 2³¹ values of one.

PyTorch issues 22496 and 132300: with more, 3D convolutions fail, or take many times the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from cov3d.errors import SettingError

MOST_VALUES = 2**31 - 1


def largest_activation(network: nn.Module, shape: Sequence[int]) -> int:
    """Values in the largest input or output of any layer for one scan ``(1, 1, *shape)``, found without memory or arithmetic."""
    largest = 0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        sizes = [leaf.numel() for leaf in tree_leaves((inputs, output)) if isinstance(leaf, Tensor)]
        largest = max(largest, *sizes, 0)

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in network.state_dict().items()}
    try:
        with torch.no_grad():
            functional_call(network, tensors, (torch.empty(1, 1, *shape, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def check_batch(network: Any, batch: int, shape: Sequence[int], device: torch.device) -> None:
    """Refuse a batch ``(batch, 1, *shape)`` whose activations are too large for a GPU.

    ``network`` is an :class:`~cov3d.nets.encoder.Encoder` or :class:`~cov3d.nets.upernet.Segmenter`: no layer of these has more
    values for a voxel (or pixel) of the scan than the first stage has channels, so that usual sizes need no closer look.

    Raises:
        SettingError: with the largest batch that can be.
    """
    if device.type != "cuda" or batch * math.prod(shape) * network.widths[0] <= MOST_VALUES:
        return
    most = MOST_VALUES // largest_activation(network, shape)
    if batch <= most:
        return
    sides = "×".join(map(str, shape))
    if not most:
        raise SettingError(
            f"at {sides} a layer's output has more than 2³¹ values, which convolutions on a GPU cannot count; "
            "say --device cpu, or train at a smaller --width"
        )
    raise SettingError(
        f"a batch of {batch} at {sides} gives a layer more than 2³¹ values, which convolutions on a GPU cannot count; "
        f"lower --batch-size to {most} (and raise --accumulate to keep the effective batch)"
    )
