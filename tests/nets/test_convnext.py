"""The ConvNeXt is the published one: counted, written out a second time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cov3d.config import NetSettings
from cov3d.errors import SettingError
from cov3d.nets.build import build
from cov3d.nets.convnext import Block, DropPath, Patches
from cov3d.nets.depthwise import Depthwise

torch.set_num_threads(1)

PUBLISHED = {"convnext-micro": 12.9, "convnext-tiny": 31.9, "convnext-small": 55.6, "convnext-base": 96.7}  # M
every_size = pytest.mark.parametrize("architecture", PUBLISHED)


def small(architecture: str = "convnext-micro", **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"base_width": 4, "penultimate": 8, "dropout": 0.0, **changes}
    return build(NetSettings(architecture=architecture, **settings))  # type: ignore[arg-type]


def restless(net: nn.Module) -> nn.Module:
    """The network with every parameter moved away from 0 and from 1e-6, so that all of it counts."""
    torch.manual_seed(2)
    for values in net.parameters():
        values.data += 0.2 * torch.rand_like(values)
    return net


def volume(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# As published


@every_size
def test_it_has_as_many_parameters_as_published(architecture: str):
    with torch.device("meta"):
        net = build(NetSettings(architecture=architecture))  # type: ignore[arg-type]
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == PUBLISHED[architecture]


@every_size
def test_its_stages_have_the_published_shapes(architecture: str):
    with torch.device("meta"):
        net = build(NetSettings(architecture=architecture))  # type: ignore[arg-type]
        w = net.stages[0][0].gamma.numel()
        shapes = [tuple(x.shape[1:]) for x in net.features(torch.empty(1, 1, 224, 224, 224))]
    assert shapes == [(w, 56, 56, 56), (2 * w, 28, 28, 28), (4 * w, 14, 14, 14), (8 * w, 7, 7, 7)]


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """LayerNorm over the channels of ``(B, C, D, H, W)``, written out."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return scaled * layer.weight[:, None, None, None] + layer.bias[:, None, None, None]


def dense(x: Tensor, layer: nn.Linear) -> Tensor:
    return torch.einsum("bcdhw,oc->bodhw", x, layer.weight) + layer.bias[:, None, None, None]


def written_out(net: Any, x: Tensor) -> Tensor:
    """The network by the paper's words, in plain tensors."""
    x = (x - 0.449) / 0.226
    for step, (shrink, stage) in enumerate(zip(net.downsample_layers, net.stages, strict=True)):
        convolution, layer = shrink if step == 0 else shrink[::-1]
        if step == 0:
            x = norm(F.conv3d(x, convolution.weight, convolution.bias, stride=4), layer)
        else:
            x = F.conv3d(norm(x, layer), convolution.weight, convolution.bias, stride=2)
        for block in stage:
            y = F.conv3d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=x.shape[1])
            y = dense(norm(y, block.norm), block.pwconv1)
            y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
            x = x + dense(y, block.pwconv2) * block.gamma[:, None, None, None]
    pooled = norm(x.mean((2, 3, 4), keepdim=True), net.norm).flatten(1)
    hidden = (pooled @ net.head[0].weight.T + net.head[0].bias).clamp(min=0)
    return hidden @ net.head[3].weight.T + net.head[3].bias


def test_it_is_what_the_paper_says_written_out_in_float64():
    net = restless(small()).double().eval()
    x = volume(2, 1, 32, 64, 64).double()
    torch.testing.assert_close(net(x), written_out(net, x))


def test_layer_scale_begins_at_a_millionth_so_that_a_new_block_is_nearly_the_identity():
    x = volume(1, 8, 4, 4, 4)
    torch.testing.assert_close(Block(8, 0.0)(x), x, atol=1e-4, rtol=0)


def test_deeper_branches_are_dropped_likelier_and_the_others_scaled():
    net = small(drop_path=0.3)
    rates = [block.drop_path.rate for stage in net.stages for block in stage]
    assert rates == pytest.approx([0.3 * k / 14 for k in range(15)])
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 1, 1, 1, 1)).flatten()
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean() == pytest.approx(1, abs=0.05)


# Any size


@pytest.mark.parametrize("shape", [(112, 224, 224), (32, 64, 64), (33, 47, 95)])
def test_no_voxel_is_cut_off_at_the_far_end(shape: tuple[int, int, int]):
    with torch.device("meta"):
        features = small().features(torch.empty(1, 1, *shape))
    sides = [-(-n // 4) for n in shape]
    for x in features:
        assert list(x.shape[2:]) == sides
        sides = [-(-n // 2) for n in sides]


def test_the_last_voxel_counts_where_a_stride_does_not_divide_a_side():
    patches = Patches(1, 1, 4)
    x = volume(1, 1, 5, 6, 7)
    moved = x.clone()
    moved[..., -1, -1, -1] += 1
    assert (patches(moved) != patches(x)).sum() == 1
    padded = F.pad(x, (0, 1, 0, 2, 0, 3))
    torch.testing.assert_close(patches(x), F.conv3d(padded, patches.weight, patches.bias, stride=4))


def test_a_side_under_32_voxels_is_refused_in_words():
    with pytest.raises(SettingError, match="at least 32 voxels, got 16×32×32; raise --width"):
        small()(volume(1, 1, 16, 32, 32))


def test_drop_path_is_for_convnexts():
    with pytest.raises(SettingError, match="--drop-path is for ConvNeXts"):
        NetSettings(architecture="resnet18", drop_path=0.1)


def test_a_scan_goes_on_as_air_at_its_far_end():
    net = restless(small()).eval()
    x = volume(1, 1, 33, 32, 34)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(F.pad(x, (0, 2, 0, 0, 0, 3))))


def test_how_bright_an_even_patch_is_is_not_lost():
    """LayerNorm takes a stem's output to the same length whatever the patch's brightness, so its sign must tell."""
    net = restless(small()).eval()
    with torch.no_grad():
        dark, bright = (net.downsample_layers[0]((torch.full((1, 1, 4, 4, 4), v) - 0.449) / 0.226) for v in (0.2, 0.7))
    assert (dark - bright).abs().max() > 0.5


# The depthwise convolution


@pytest.mark.parametrize("shape", [(2, 3, 9, 8, 10), (1, 2, 2, 3, 1), (3, 4, 7, 7, 7)])
def test_the_depthwise_gradients_are_torchs(shape: tuple[int, ...]):
    torch.manual_seed(0)
    layer = Depthwise(shape[1], 7).double()
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn_like(x)
    layer(x).backward(gradient)
    ours = [x.grad, layer.weight.grad, layer.bias.grad]
    x.grad = None
    layer.zero_grad()
    F.conv3d(x, layer.weight, layer.bias, padding=3, groups=shape[1]).backward(gradient)
    for a, b in zip(ours, [x.grad, layer.weight.grad, layer.bias.grad], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_the_depthwise_gradients_are_right_in_half_precision_too():
    torch.manual_seed(0)
    layer = Depthwise(3, 7)
    x = torch.randn(2, 3, 6, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).square().sum().backward()
    half = [x.grad.clone(), layer.weight.grad.clone()]
    x.grad = None
    layer.zero_grad()
    layer(x).square().sum().backward()
    for a, b in zip(half, [x.grad, layer.weight.grad], strict=True):
        assert (a - b).norm() < 0.02 * b.norm()
