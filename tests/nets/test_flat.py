"""2D networks are the 3D ones without depth, by the names that others know them by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, resnet18

from cov3d.config import NetSettings
from cov3d.config.pictures import FLAT
from cov3d.errors import SettingError
from cov3d.nets.build import build
from cov3d.nets.convnext import DEVIATION, MEAN
from cov3d.nets.flat import build_flat
from cov3d.nets.inflate import inflate
from cov3d.nets.inflate_names import SCHEMES

torch.set_num_threads(1)

every_flat = pytest.mark.parametrize("architecture", FLAT)


def shaken(net: nn.Module) -> Any:
    """The network with every parameter away from where it begins, so that all of it counts, and statistics of its own."""
    generator = torch.Generator().manual_seed(1)
    for name, values in net.state_dict().items():
        if "running" in name:
            values.uniform_(0.5, 1.5, generator=generator)
        elif values.is_floating_point():
            values += 0.1 * torch.randn(values.shape, generator=generator)
    return net.eval()


def small(architecture: str) -> Any:
    torch.manual_seed(0)
    return build_flat(NetSettings(architecture=architecture, base_width=4), classes=5)  # type: ignore[arg-type]


def picture(*sides: int) -> Tensor:
    return torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(2))


@every_flat
@pytest.mark.parametrize("sides", [(32, 32), (33, 47), (224, 64)])
def test_pictures_of_any_side_get_an_answer_for_each_class(architecture: str, sides: tuple[int, int]):
    net = small(architecture).eval()
    assert net(picture(*sides)).shape == (2, 5)
    maps = net.features(picture(*sides))
    first, halving = (4, 2) if "convnext" in architecture else (2, 2)
    for stage, features in enumerate(maps):
        shrink = first * halving**stage
        assert features.shape[1:] == (4 * 2**stage, *(-(-side // shrink) for side in sides))


@every_flat
@pytest.mark.parametrize("how", ["full", "1g"])
@torch.no_grad()
def test_inflated_each_has_all_that_the_3d_network_has_but_its_head(architecture: str, how: str):
    flat, net = small(architecture), build(NetSettings(architecture=architecture, base_width=4))  # type: ignore[arg-type]
    made = inflate(flat.state_dict(), net, how, "sum", "w")
    assert set(made.tensors) == {name for name in net.state_dict() if not name.startswith("head.")}
    assert len(made.head) == 2


@torch.no_grad()
def test_the_2d_convnext_answers_as_torchvisions_of_the_same_weights():
    torch.manual_seed(0)
    theirs = shaken(convnext_tiny(num_classes=7))
    theirs.features[0][0].weight.data = theirs.features[0][0].weight.data[:, :1]
    theirs.features[0][0].in_channels = 1
    ours = build_flat(NetSettings(architecture="convnext-tiny"), classes=7).eval()
    ours.load_state_dict(as_metas(theirs.state_dict()))
    x = picture(64, 96)
    torch.testing.assert_close(ours(x), theirs((x - MEAN) / DEVIATION), atol=1e-4, rtol=1e-4)


def as_metas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's tensors by Meta's names."""
    import re

    renaming = next(one.renaming for one in SCHEMES if one.who == "torchvision")
    out = {}
    for name, values in tensors.items():
        for pattern, ours in renaming:
            name = re.sub(pattern, ours, name)
        out[name] = values.flatten() if name.endswith("gamma") else values
    return out


@torch.no_grad()
def test_the_2d_resnet_answers_as_torchvisions_without_its_max_pooling():
    theirs = resnet18(num_classes=7)
    theirs.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    theirs.maxpool = nn.Identity()  # type: ignore[assignment]
    shaken(theirs)
    ours = build_flat(NetSettings(), classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(picture(64, 48)), theirs(picture(64, 48)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["mc3-18", "r2plus1d-18"])
def test_what_differs_along_depth_has_no_2d_network(architecture: str):
    with pytest.raises(
        SettingError, match=f"--architecture {architecture} has no 2D weights.* choose one of resnet18, convnext"
    ):
        small(architecture)


def test_branches_are_dropped_by_whole_pictures():
    net = build_flat(NetSettings(architecture="convnext-micro", base_width=4, drop_path=0.5), classes=2).train()
    block = net.stages[3][2]  # type: ignore[index]
    block.gamma.data.fill_(1.0)
    x = torch.randn(64, 32, 2, 2)
    torch.manual_seed(0)
    same = (block(x) == x).flatten(1)
    assert 10 < int(same.all(1).sum()) < 54 and torch.equal(same.all(1), same.any(1))


@every_flat
def test_activations_may_be_computed_again(architecture: str):
    torch.manual_seed(0)
    net = build_flat(NetSettings(architecture=architecture, base_width=4, drop_path=None), classes=3)  # type: ignore[arg-type]
    net.train()
    gradients = []
    for net.checkpointing in (False, True):
        net.zero_grad()
        torch.manual_seed(3)
        net(picture(32, 32)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1])
