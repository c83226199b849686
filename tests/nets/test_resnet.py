"""The ResNets are torchvision's, but for the surgery: checked against torchvision itself, stage by stage."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision.models.video as video
from torch import Tensor, nn

from cov3d.config import NetSettings
from cov3d.nets.build import build

torch.set_num_threads(1)

TORCHVISION = {"resnet18": "r3d_18", "mc3-18": "mc3_18", "r2plus1d-18": "r2plus1d_18"}
PUBLISHED = {"resnet18": 33_371_472, "mc3-18": 11_695_440, "r2plus1d-18": 31_505_325}  # torchvision's meta, 400 classes
KINETICS_HEAD = 512 * 400 + 400
every_architecture = pytest.mark.parametrize("architecture", TORCHVISION)


def small(architecture: str = "resnet18", **changes) -> Any:
    torch.manual_seed(0)
    settings = {"base_width": 4, "penultimate": 8, **changes}
    return build(NetSettings(architecture=architecture, **settings))  # type: ignore[arg-type]


def published(architecture: str) -> Any:
    return build(NetSettings(architecture=architecture))  # type: ignore[arg-type]


def volume(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def restless_torchvision(architecture: str) -> Any:
    """Torchvision's network with every parameter and statistic of BatchNorm moved away from 0 and 1."""
    torch.manual_seed(2)
    net = getattr(video, TORCHVISION[architecture])().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            for name, values in module.state_dict().items():
                if name != "num_batches_tracked":
                    values += 0.2 * torch.rand_like(values)
    return net


def torchvision_stages(net: Any, x: Tensor) -> list[Tensor]:
    stages = [net.stem(x)]
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        stages.append(layer(stages[-1]))
    return stages[1:]


def body_size(net: nn.Module) -> int:
    return sum(p.numel() for name, p in net.named_parameters() if not name.startswith(("head.", "fc.")))


@every_architecture
@torch.no_grad()
def test_a_grey_scan_gives_the_features_that_torchvision_gives_three_equal_colours(architecture):
    theirs, ours = restless_torchvision(architecture), published(architecture).eval()
    weights = {name: values for name, values in theirs.state_dict().items() if not name.startswith("fc.")}
    weights["stem.0.weight"] = weights["stem.0.weight"].sum(1, keepdim=True)
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)

    x = volume(1, 1, 5, 33, 40)
    expected = torchvision_stages(theirs, x.repeat(1, 3, 1, 1, 1))
    found = ours.features(x)
    assert len(found) == 4
    for ours_here, theirs_here in zip(found, expected, strict=True):
        assert theirs_here.std() > 0.01
        torch.testing.assert_close(ours_here, theirs_here, rtol=1e-4, atol=1e-5 * float(theirs_here.abs().max()))
    torch.testing.assert_close(ours(x), ours.head(expected[-1].mean((2, 3, 4))), rtol=1e-4, atol=1e-5)


@every_architecture
def test_it_has_as_many_parameters_as_published(architecture):
    with torch.device("meta"):
        ours = published(architecture)
        theirs = getattr(video, TORCHVISION[architecture])()
    stem = ours.stem[0].weight.numel()  # for one channel; theirs sees three
    assert body_size(ours) == body_size(theirs) - 2 * stem == PUBLISHED[architecture] - KINETICS_HEAD - 2 * stem
    head = sum(p.numel() for p in ours.head.parameters())
    assert head == 512 * 512 + 512 + 512 * 6 + 6
    if architecture == "resnet18":
        assert f"{(body_size(ours) + head) / 1e6:.1f}" == "33.4"


@every_architecture
def test_it_begins_with_the_distribution_of_torchvision(architecture):
    ours, theirs = published(architecture), getattr(video, TORCHVISION[architecture])()
    convolutions = [n for n, p in theirs.named_parameters() if p.dim() == 5 and not n.startswith("stem.0")]
    for name in convolutions:
        ratio = ours.state_dict()[name].std() / theirs.state_dict()[name].std()
        assert 0.9 < ratio < 1.1, name


@pytest.mark.parametrize("depth, height, width", [(16, 32, 32), (9, 33, 47), (1, 16, 17), (7, 5, 1)])
@every_architecture
@torch.no_grad()
def test_depth_is_whole_until_layer2_and_every_halving_rounds_up(architecture, depth, height, width):
    net = small(architecture).eval()
    stages = net.features(volume(2, 1, depth, height, width))
    for index, features in enumerate(stages):
        deep = 1 if architecture == "mc3-18" else 2**index  # MC3 strides no stage in depth
        plane = 2 ** (index + 1)
        assert features.shape == (2, 4 * 2**index, -(-depth // deep), -(-height // plane), -(-width // plane))
    assert net(volume(2, 1, depth, height, width)).shape == (2, 6)


@every_architecture
def test_base_width_scales_every_stage(architecture):
    with torch.device("meta"):
        wide, narrow = published(architecture), small(architecture, base_width=16)
    for name, values in wide.named_parameters():
        if name.startswith("head.") or values.dim() != 5:
            continue
        quarter = dict(narrow.named_parameters())[name].shape[0]
        assert abs(quarter - values.shape[0] / 4) < 1, name
    assert (wide.head[0].in_features, narrow.head[0].in_features) == (512, 128)


@pytest.mark.parametrize("pool, reduce", [("avg", torch.mean), ("max", torch.amax)])
@torch.no_grad()
def test_features_are_pooled_over_the_whole_volume(pool, reduce):
    net, x = small(pool=pool).eval(), volume(2, 1, 16, 48, 48)
    torch.testing.assert_close(net(x), net.head(reduce(net.features(x)[-1], dim=(2, 3, 4))))


@torch.no_grad()
def test_the_head_has_one_hidden_layer_of_rectified_features():
    head, features = small(penultimate=16).eval().head, torch.randn(3, 32)
    weights = head.state_dict()
    hidden = (features @ weights["0.weight"].T + weights["0.bias"]).clamp(min=0)
    assert hidden.shape == (3, 16) and (hidden == 0).any()
    torch.testing.assert_close(head(features), hidden @ weights["3.weight"].T + weights["3.bias"])


def test_dropout_follows_each_stage_in_training_only():
    net, x = small(dropout=0.5), volume(2, 1, 8, 64, 64)
    with torch.no_grad():
        trained = [float((features == 0).float().mean()) for features in net.train().features(x)]
        net.dropout.p = 0.0
        without = [float((features == 0).float().mean()) for features in net.features(x)]
    for share, relu_alone in zip(trained, without, strict=True):
        assert share > relu_alone + 0.1

    net = small(dropout=0.5).eval()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_no_dropout_is_in_place():
    assert not any(m.inplace for m in small().modules() if isinstance(m, nn.Dropout))


def test_stages_are_not_written_over_by_later_layers():
    net, x = small().eval(), volume(1, 1, 8, 32, 32)
    with torch.no_grad():
        first = net.features(x)[0]
        torch.testing.assert_close(first, net.layer1(net.stem(x)), rtol=0, atol=0)


def test_networks_and_models_need_neither_torchvision_nor_fastai():
    program = "import sys, cov3d.nets.model; print({'torchvision', 'fastai'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
