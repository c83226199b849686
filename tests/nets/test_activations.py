"""Batches whose activations a GPU's convolutions cannot count are refused before anything is made of them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cov3d.config import NetSettings
from cov3d.config.pictures import FLAT
from cov3d.errors import SettingError
from cov3d.nets.activations import MOST_VALUES, check_batch, largest_activation
from cov3d.nets.build import CLASSES, MASKS, NETS, build
from cov3d.nets.flat import build_flat

GPU = torch.device("cuda")


def test_the_resnet_of_the_mission_takes_eight_scans_of_320():
    """64 channels of 160 slices of 160²: 2.6e8 values a scan, of which 2³¹ are 8.19."""
    net = build(NetSettings("resnet18"))
    assert largest_activation(net, (160, 320, 320)) == 64 * 160 * 160 * 160
    check_batch(net, 8, (160, 320, 320), GPU)
    sentence = (
        "a batch of 9 at 160×320×320 gives a layer more than 2³¹ values, which convolutions on a GPU cannot count; "
        "lower --batch-size to 8 (and raise --accumulate to keep the effective batch)"
    )
    with pytest.raises(SettingError, match=f"^{re.escape(sentence)}$"):
        check_batch(net, 9, (160, 320, 320), GPU)
    check_batch(net, 9, (160, 320, 320), torch.device("cpu"))


def test_a_single_scan_may_be_too_large():
    with pytest.raises(
        SettingError, match=r"^at 400×800×800 a layer's output .*; say --device cpu, or train at a smaller"
    ):
        check_batch(build(NetSettings("resnet18")), 1, (400, 800, 800), GPU)


@pytest.mark.parametrize("heads", [(CLASSES,), (CLASSES, MASKS)])
@pytest.mark.parametrize("architecture", NETS)
def test_what_is_found_without_memory_is_what_a_network_really_makes(architecture: str, heads: tuple[str, ...]):
    settings = NetSettings(architecture, base_width=8, penultimate=8)  # type: ignore[arg-type]
    net = build(settings, heads).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sizes: list[int] = []

    def note(module: torch.nn.Module, inputs: object, output: object) -> None:
        sizes.extend(leaf.numel() for leaf in tree_leaves((inputs, output)) if isinstance(leaf, Tensor))

    hooks = [module.register_forward_hook(note) for module in net.modules()]
    net(torch.rand(1, 1, 32, 33, 47))
    for hook in hooks:
        hook.remove()
    assert largest_activation(net, (32, 33, 47)) == max(sizes)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", NETS)
def test_no_layer_has_more_values_for_a_voxel_than_the_base_width(architecture: str):
    """Also where sides are odd and strides round up."""
    net = build(NetSettings(architecture), (CLASSES, MASKS))  # type: ignore[arg-type]
    assert largest_activation(net, (65, 97, 129)) <= 65 * 97 * 129 * NetSettings(architecture).numbers.base_width


@pytest.mark.parametrize("architecture", FLAT)
def test_no_2d_layer_has_more_values_for_a_pixel_than_the_base_width(architecture: str):
    net = build_flat(NetSettings(architecture), 10)  # type: ignore[arg-type]
    assert largest_activation(net, (97, 97)) <= 97 * 97 * NetSettings(architecture).numbers.base_width
    check_batch(net, 256, (224, 224), GPU)
    with pytest.raises(SettingError, match=r"lower --batch-size to [0-9]+ "):
        check_batch(net, MOST_VALUES // 97**2, (97, 97), GPU)
