"""How large a network's activations are: convolutions on a GPU count no more than 2³¹ values of one.

PyTorch issues 22496 and 132300: with more, 3D convolutions fail, or take many times the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from cov3d.errors import SettingError

MOST_VALUES = 2**31 - 1


def largest_activation(network: nn.Module, shape: Sequence[int]) -> int:
    """Values in the largest output of any layer for one input ``(1, *shape)``, found without memory or arithmetic."""
    largest = 0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        sizes = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
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


def check_batch(network: nn.Module, widest: int, batch: int, shape: Sequence[int], device: torch.device) -> None:
    """Refuse a batch ``(batch, 1, *shape)`` whose activations are too large for a GPU.

    ``widest`` is the network's base width: no layer has more values than that for each voxel (or pixel) of its input, so that
    usual sizes need no closer look.

    Raises:
        SettingError: with the largest batch that can be.
    """
    values = batch
    for side in shape:
        values *= side
    if device.type != "cuda" or values * widest <= MOST_VALUES:
        return
    most = MOST_VALUES // largest_activation(network, shape)
    if batch <= most:
        return
    sides = "×".join(map(str, shape))
    if not most:
        raise SettingError(
            f"at {sides} a layer's output has more than 2³¹ values, which convolutions on a GPU cannot count; "
            "say --device cpu, or take a smaller --width"
        )
    raise SettingError(
        f"a batch of {batch} at {sides} gives a layer more than 2³¹ values, which convolutions on a GPU cannot count; "
        f"lower --batch-size to {most} (and raise --accumulate to keep the effective batch)"
    )
