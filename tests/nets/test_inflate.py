"""2D weights become 3D ones as published: by the equations, by the answer, by every name, and not otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, resnet18, resnet34, resnet50
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

from cov3d.config import NetSettings
from cov3d.errors import ModelError
from cov3d.nets.build import build
from cov3d.nets.convnext import BLOCKS, DEVIATION, MEAN
from cov3d.nets.inflate import Inflated, inflate, inflate_kernel

torch.set_num_threads(1)

HOW = ("full", "1g", "2g")
SMALL = NetSettings(architecture="convnext-tiny", base_width=4, penultimate=8)
every_how = pytest.mark.parametrize("how", HOW)
every_norm = pytest.mark.parametrize("norm", ["l2", "sum"])
every_side = pytest.mark.parametrize("k", [1, 2, 4, 7])


def kernels(k: int, *channels: int) -> Tensor:
    return torch.randn(*(channels or (3, 2)), k, k, generator=torch.Generator().manual_seed(k))


def flat_net(architecture: str = "convnext-tiny", width: int = 4) -> TorchvisionConvNeXt:
    """Torchvision's 2D ConvNeXt with random weights, none of them at its start: all of a block counts."""
    torch.manual_seed(0)
    widths = [width * 2**stage for stage in range(4)]
    outputs: list[int | None] = [*widths[1:], None]
    stages = [CNBlockConfig(*numbers) for numbers in zip(widths, outputs, BLOCKS[architecture], strict=True)]
    net = TorchvisionConvNeXt(stages, num_classes=10).eval()
    for values in net.parameters():
        values.data += 0.3 * torch.randn_like(values)
    return net


def small_net() -> Any:
    return build(SMALL)


# The names of others, made from torchvision's


META = [
    (r"features\.([0246])\.", lambda m: f"downsample_layers.{int(m[1]) // 2}."),
    (r"features\.([1357])\.", lambda m: f"stages.{int(m[1]) // 2}."),
    (r"block\.0\.", "dwconv."),
    (r"block\.2\.", "norm."),
    (r"block\.3\.", "pwconv1."),
    (r"block\.5\.", "pwconv2."),
    (r"layer_scale", "gamma"),
    (r"classifier\.0\.", "norm."),
    (r"classifier\.2\.", "head."),
]
TIMM = [
    (r"features\.0\.", "stem."),
    (r"features\.([246])\.", lambda m: f"stages.{int(m[1]) // 2}.downsample."),
    (r"features\.([1357])\.", lambda m: f"stages.{int(m[1]) // 2}.blocks."),
    (r"block\.0\.", "conv_dw."),
    (r"block\.2\.", "norm."),
    (r"block\.3\.", "mlp.fc1."),
    (r"block\.5\.", "mlp.fc2."),
    (r"layer_scale", "gamma"),
    (r"classifier\.0\.", "head.norm."),
    (r"classifier\.2\.", "head.fc."),
]
NORM_FIRST: list[tuple[str, Any]] = [(r"classifier\.0\.", "norm_pre."), *TIMM]
NAMES: dict[str, list[tuple[str, Any]]] = {"torchvision": [], "Meta": META, "timm": TIMM, "timm, norm_pre": NORM_FIRST}
every_name = pytest.mark.parametrize("names", NAMES)


def renamed(tensors: dict[str, Tensor], names: str) -> dict[str, Tensor]:
    out = {}
    for name, values in tensors.items():
        for pattern, other in NAMES[names]:
            name = re.sub(pattern, other, name)
        gamma = name.endswith("gamma")
        out[name] = values.flatten() if gamma else values
    return out


def source(names: str = "Meta") -> dict[str, Tensor]:
    return renamed(flat_net().state_dict(), names)


def cut(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: values for name, values in tensors.items() if name not in names}


def inflated(tensors: dict[str, Tensor], how: str = "full", norm: str = "sum") -> Inflated:
    return inflate(tensors, small_net(), how, norm, "w.pth")


def refusal(tensors: dict[str, Tensor], net: nn.Module | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        inflate(tensors, net or small_net(), "2g", "l2", "w.pth")
    assert "w.pth" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# The equations


def written_out(kernel: Tensor, how: str) -> Tensor:
    """A of one kernel ``(k, k)`` by the equations, before γ, number by number."""
    k = len(kernel)
    g = [math.exp(-((j - (k - 1) / 2) ** 2) / (2 * (k / 8) ** 2)) for j in range(k)]
    cube = torch.zeros(k, k, k, dtype=torch.float64)
    for d in range(k):
        for h in range(k):
            for w in range(k):
                flat, upright = float(kernel[h, w]), float(kernel[h, d])
                equations = {"full": flat, "1g": flat * g[d], "2g": flat * g[d] + upright * g[w]}
                cube[d, h, w] = equations[how]
    return cube


@every_side
@every_how
@every_norm
def test_a_kernel_is_inflated_by_the_equations_but_for_its_scale(k: int, how: str, norm: str):
    flat = kernels(k)
    wanted = torch.stack([torch.stack([written_out(one, how) for one in out]) for out in flat])
    scale = flat.double().norm() / wanted.norm() if norm == "l2" else flat.double().sum() / wanted.sum()
    torch.testing.assert_close(inflate_kernel(flat, how, norm).double(), wanted * scale, atol=1e-6, rtol=1e-5)


def test_the_gaussian_of_a_seven_is_the_one_worked_by_hand():
    """µ = 3, σ = 7/8, so 2σ² = 49/32: g(0) = exp(−9 · 32/49), g(2) = exp(−32/49), g(3) = 1."""
    cube = inflate_kernel(torch.ones(1, 1, 7, 7), "1g", "sum")[0, 0, :, 0, 0]
    assert cube[2] / cube[3] == pytest.approx(math.exp(-32 / 49), rel=1e-6)
    assert cube[0] / cube[3] == pytest.approx(math.exp(-288 / 49), rel=1e-6)
    assert torch.equal(cube, cube.flip(0))


@every_side
@every_how
def test_the_l2_norm_of_a_tensor_is_kept(k: int, how: str):
    flat = kernels(k, 8, 5)
    assert inflate_kernel(flat, how, "l2").double().norm() == pytest.approx(float(flat.double().norm()), rel=1e-6)


@every_side
@every_how
def test_the_sum_of_every_kernel_is_kept(k: int, how: str):
    flat = kernels(k, 8, 5)
    sums = inflate_kernel(flat, how, "sum").double().sum((2, 3, 4))
    torch.testing.assert_close(sums, flat.double().sum((2, 3)), atol=1e-5, rtol=1e-6)


@every_how
def test_a_kernel_whose_sum_is_zero_is_scaled_as_any_other(how: str):
    """A quotient of sums would be 0/0, or a rounding error by another."""
    edge = kernels(7)
    edge -= edge.mean()
    assert abs(float(edge.sum())) < 1e-4
    ratio = inflate_kernel(edge + 1, how, "sum") - inflate_kernel(edge, how, "sum")
    torch.testing.assert_close(ratio, inflate_kernel(torch.ones_like(edge), how, "sum"), atol=1e-6, rtol=1e-5)
    assert inflate_kernel(edge, how, "sum").norm() > 0.1 * edge.norm()


@every_how
@every_norm
def test_a_kernel_of_zeros_stays_zero(how: str, norm: str):
    assert torch.equal(inflate_kernel(torch.zeros(2, 1, 7, 7), how, norm), torch.zeros(2, 1, 7, 7, 7))


def test_half_precision_is_widened():
    flat = kernels(4)
    cube = inflate_kernel(flat.half(), "2g", "l2")
    assert cube.dtype == torch.float32
    torch.testing.assert_close(cube, inflate_kernel(flat, "2g", "l2"), atol=1e-3, rtol=1e-3)


# The answer


def stages_of(net: TorchvisionConvNeXt, image: Tensor) -> list[Tensor]:
    """What the four stages of the 2D network give."""
    out = []
    for layer in net.features:
        image = layer(image)
        out.append(image)
    return out[1::2]  # after the stages, not before them


def grey(net: TorchvisionConvNeXt, width: int) -> TorchvisionConvNeXt:
    net.features[0][0] = nn.Conv2d(1, width, 4, 4)
    return net


def published() -> TorchvisionConvNeXt:
    """Torchvision's own convnext_tiny, its blocks no longer scaled to a millionth, nor their scale lost in LayerNorm."""
    torch.manual_seed(0)
    net = convnext_tiny().eval()
    for name, values in net.named_parameters():
        if name.endswith(("layer_scale", "block.0.bias")):
            values.data = 0.5 + torch.rand_like(values)
    return net


@torch.no_grad()
@pytest.mark.parametrize(
    "make, settings, how, colours",
    [
        (published, NetSettings(architecture="convnext-tiny"), "full", 3),
        (flat_net, SMALL, "full", 3),
        (flat_net, SMALL, "1g", 3),
        (lambda: grey(flat_net(), 4), SMALL, "full", 1),
        (lambda: grey(flat_net(), 4), SMALL, "1g", 1),
    ],
    ids=["convnext_tiny, RGB, full", "RGB, full", "RGB, 1g", "grey, full", "grey, 1g"],
)
def test_on_a_volume_constant_along_depth_every_stage_answers_as_in_2d(
    make: Callable[[], TorchvisionConvNeXt], settings: NetSettings, how: str, colours: int
):
    flat, net = make(), build(settings).eval()
    image = torch.rand(1, 1, 64, 32, generator=torch.Generator().manual_seed(1))
    wanted = stages_of(flat, ((image - MEAN) / DEVIATION).expand(-1, colours, -1, -1))
    made = inflate(flat.state_dict(), net, how, "sum", "w.pth")
    net.load_state_dict(made.tensors, strict=False)
    # A block sees 3 slices of its map to each side, all of them together 828 of the volume's; its ends are padded.
    features = net.features(image[:, :, None].expand(-1, -1, 1792, -1, -1))  # type: ignore[operator]
    for ours, theirs in zip(features, wanted, strict=True):
        assert theirs.std() > 0.1  # there is something to answer
        middle = ours[:, :, ours.shape[2] // 2]
        torch.testing.assert_close(middle, theirs, atol=1e-4, rtol=1e-4)
        assert (ours[:, :, 0] - theirs).abs().max() > 1e-2  # and the ends are not so


@every_how
def test_two_crossed_gaussians_see_what_a_plane_through_depth_shows(how: str):
    """Turned so that depth and width change places, 2g answers the same, turned; full and 1g do not."""
    cube = inflate_kernel(kernels(7, 4, 1), how, "l2")
    turned = cube.transpose(2, 4)
    assert torch.allclose(cube, turned, atol=1e-6) == (how == "2g")


# The names


@every_name
@every_how
def test_every_tensor_is_accounted_for_whoever_named_it(names: str, how: str):
    tensors, net = source(names), small_net()
    made = inflated(tensors, how)
    assert len(made.tensors) + len(made.head) == len(tensors)
    assert set(made.tensors) == {name for name in net.state_dict() if not name.startswith("head.")}
    assert all(values.shape == net.state_dict()[name].shape for name, values in made.tensors.items())
    assert len(made.kernels) == 1 + 3 + sum(BLOCKS["convnext-tiny"])
    assert made.summed == ("downsample_layers.0.0.weight",)
    assert set(made.head) == set(
        renamed({"classifier.2.weight": torch.ones(1), "classifier.2.bias": torch.ones(1)}, names)
    )


@every_name
@pytest.mark.parametrize("norm", ["l2", "sum"])
def test_all_names_give_the_same_weights(names: str, norm: str):
    """Each tensor of random values of its own: none is taken for another of its shape."""
    ours = inflated(source("Meta"), "2g", norm).tensors
    theirs = inflated(source(names), "2g", norm).tensors
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_what_is_no_kernel_is_copied():
    tensors = source("Meta")
    made = inflated(tensors, "1g", "l2")
    for name in set(made.tensors) - set(made.kernels):
        assert torch.equal(made.tensors[name], tensors[name])


@every_how
@every_norm
def test_an_rgb_stem_is_summed_over_its_colours_and_then_inflated(how: str, norm: str):
    tensors = source()
    stem = tensors["downsample_layers.0.0.weight"]
    summed = stem[:, :1] + stem[:, 1:2] + stem[:, 2:]
    ours = inflated(tensors, how, norm).tensors["downsample_layers.0.0.weight"]
    torch.testing.assert_close(ours, inflate_kernel(summed, how, norm))
    alone = inflated({**tensors, "downsample_layers.0.0.weight": summed}, how, norm)
    torch.testing.assert_close(ours, alone.tensors["downsample_layers.0.0.weight"])
    assert alone.summed == ()


def test_timms_pointwise_convolutions_are_matrices():
    tensors = source("timm")
    wide = {
        name: values[..., None, None] if ".mlp." in name and values.dim() == 2 else values
        for name, values in tensors.items()
    }
    ours, theirs = inflated(tensors).tensors, inflated(wide).tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_name
def test_a_file_without_a_head_serves(names: str):
    tensors = source(names)
    headless = cut(tensors, *inflated(tensors).head)
    assert len(headless) == len(tensors) - 2 and inflated(headless).head == ()


# What does not fit


@pytest.mark.parametrize(
    "change, cause",
    [
        (lambda t: {**t, "stages.0.0.extra": torch.ones(4)}, "stages.0.0.extra is not known in a 2D ConvNeXt"),
        (lambda t: {**t, "stem.0.weight": torch.ones(4)}, "stem.0.weight is not known"),
        (lambda t: cut(t, "stages.1.2.gamma"), "stages.1.2.gamma, as Meta calls it, is missing"),
        (
            lambda t: cut(t, "downsample_layers.0.0.weight"),
            "downsample_layers.0.0.weight, as Meta calls it, is missing",
        ),
        (lambda t: cut(t, "norm.weight"), "norm.weight, as Meta calls it, is missing"),
        (lambda t: {**t, "norm.bias": torch.ones(8)}, "norm.bias is 8, not 32"),
        (lambda t: {**t, "norm.bias": torch.tensor(1.0)}, "norm.bias is a number, not 32"),
        (lambda t: {**t, "stages.0.1.dwconv.weight": torch.ones(4, 1, 5, 5)}, "weight is 4×1×5×5, not 4×1×7×7"),
        (lambda t: {**t, "stages.0.1.dwconv.weight": torch.ones(4, 3, 7, 7)}, "weight is 4×3×7×7, not 4×1×7×7"),
        (lambda t: {**t, "downsample_layers.0.0.weight": torch.ones(4, 2, 4, 4)}, "is 4×2×4×4, not 4×1×4×4"),
        (lambda t: {**t, "downsample_layers.0.0.weight": torch.tensor(1.0)}, "is a number, not 4×1×4×4"),
        (lambda t: {**t, "stages.0.0.pwconv1.weight": torch.ones(4, 16)}, "pwconv1.weight is 4×16, not 16×4"),
        (lambda t: {**t, "stages.0.0.grn.gamma": torch.ones(1, 1, 1, 16)}, "ConvNeXt V2 weights"),
        (lambda t: {"conv1.weight": torch.ones(64, 3, 7, 7)}, "no 2D ConvNeXt of Meta, timm, torchvision"),
        (lambda t: {}, "no 2D ConvNeXt"),
        (lambda t: small_net().state_dict(), "holds 3D weights already; leave --inflate out"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], cause: str):
    assert cause in refusal(change(source()))


@every_name
def test_a_wrong_tensor_is_named_as_its_file_names_it(names: str):
    tensors = source(names)
    name = next(iter(renamed({"features.3.1.block.0.weight": torch.ones(1)}, names)))
    assert f"{name} is 8×1×3×3, not 8×1×7×7" in refusal({**tensors, name: torch.ones(8, 1, 3, 3)})


def test_a_tensor_that_is_there_twice_is_named():
    tensors = source("timm")
    twice = {**tensors, "norm_pre.weight": tensors["head.norm.weight"]}
    assert "holds head.norm.weight and norm_pre.weight, which are the same" in refusal(twice)


def test_v2_is_refused_by_timms_names_too():
    assert "ConvNeXt V2" in refusal({**source("timm"), "stages.0.blocks.0.mlp.grn.weight": torch.ones(16)})


@pytest.mark.parametrize(
    "theirs, ours, advice",
    [
        (("convnext-tiny", 4), ("convnext-small", 4), "choose --architecture convnext-tiny --base-width 4"),
        (("convnext-tiny", 4), ("convnext-tiny", 8), "choose --architecture convnext-tiny --base-width 4"),
        (("convnext-base", 128), ("convnext-small", 96), "choose --architecture convnext-base --base-width 128"),
        (("convnext-small", 96), ("convnext-base", 128), "choose --architecture convnext-small --base-width 96"),
        (("convnext-small", 192), ("convnext-base", 128), "--base-width 192"),
    ],
)
def test_for_a_network_of_another_size_the_architecture_that_fits_is_named(theirs: Any, ours: Any, advice: str):
    with torch.device("meta"):
        tensors = renamed(flat_net(*theirs).state_dict(), "Meta")
        sentence = refusal(tensors, build(NetSettings(architecture=ours[0], base_width=ours[1])))
    assert advice in sentence
    assert f"w.pth has {theirs[1]} channels and 3, 3, " in sentence


def test_a_size_that_no_architecture_has_is_said():
    tensors = {name: values for name, values in source().items() if not name.startswith("stages.3.2.")}
    assert refusal(tensors) == (
        "w.pth has 4 channels and 3, 3, 9, 2 blocks, and the network 4 channels and 3, 3, 9, 3 blocks; choose other --weights"
    )


# Of a ResNet-18


def flat_resnet(colours: int = 1) -> Any:
    """Torchvision's resnet18 with random weights and statistics, without max pooling, which no 3D one has."""
    torch.manual_seed(0)
    net = resnet18()
    net.conv1 = nn.Conv2d(colours, 64, 7, stride=2, padding=3, bias=False)
    net.maxpool = nn.Identity()  # type: ignore[assignment]
    for name, values in net.state_dict().items():
        if "running_var" in name:
            values.uniform_(0.5, 1.5)
        elif "running_mean" in name or ("bn" in name and "bias" in name):
            values.uniform_(0, 0.3)
    return net.eval()


def resnet_net(width: int | None = None) -> Any:
    return build(NetSettings(architecture="resnet18", base_width=width)).eval()


def resnet_refusal(tensors: dict[str, Tensor], width: int | None = None) -> str:
    with torch.device("meta"):
        net = build(NetSettings(architecture="resnet18", base_width=width))
    return refusal(tensors, net)


@torch.no_grad()
@pytest.mark.parametrize("colours, how", [(1, "full"), (1, "1g"), (3, "full")])
def test_on_a_volume_constant_along_depth_every_stage_of_a_resnet_answers_as_in_2d(colours: int, how: str):
    flat, net = flat_resnet(colours), resnet_net()
    made = inflate(flat.state_dict(), net, how, "sum", "w.pth")
    net.load_state_dict(made.tensors, strict=False)
    image = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    # layer4 sees 54 slices to each side: 1 by the stem, 4, 7, 14 and 28 by the layers, whose steps are 1, 2, 4 and 8.
    features = net.features(image[:, :, None].expand(-1, -1, 112, -1, -1))
    wanted = flat.relu(flat.bn1(flat.conv1(image.expand(-1, colours, -1, -1))))
    for ours, layer, step in zip(
        features, (flat.layer1, flat.layer2, flat.layer3, flat.layer4), (1, 2, 4, 8), strict=True
    ):
        wanted = layer(wanted)
        assert wanted.std() > 0.1  # there is something to answer
        torch.testing.assert_close(ours[:, :, 56 // step], wanted, atol=1e-4, rtol=1e-4)
        assert (ours[:, :, 0] - wanted).abs().max() > 1e-2  # and the ends are not so


@every_how
@every_norm
def test_every_tensor_of_a_resnet_is_accounted_for(how: str, norm: str):
    flat = flat_resnet(3).state_dict()
    with torch.device("meta"):
        net = resnet_net()
    made = inflate(flat, net, how, norm, "w.pth")
    own = net.state_dict()
    assert set(made.tensors) == {name for name in own if not name.startswith("head.")}
    assert all(values.shape == own[name].shape for name, values in made.tensors.items())
    assert made.head == ("fc.weight", "fc.bias") and made.summed == ("stem.0.weight",)
    assert len(made.kernels) == 1 + 16 + 3 and len(made.tensors) + 2 == len(flat)
    assert torch.equal(made.tensors["layer3.1.conv2.1.running_var"], flat["layer3.1.bn2.running_var"])
    assert torch.equal(made.tensors["layer2.0.downsample.1.bias"], flat["layer2.0.downsample.1.bias"])
    theirs = inflate_kernel(flat["layer3.1.conv2.weight"], how, norm)
    assert torch.equal(made.tensors["layer3.1.conv2.0.weight"], theirs)
    one = made.tensors["layer2.0.downsample.0.weight"][..., 0, 0, 0]
    torch.testing.assert_close(one, flat["layer2.0.downsample.0.weight"][..., 0, 0])


@every_norm
def test_a_flat_stem_of_seven_becomes_three_slices_deep_and_crossed_gaussians_are_one(norm: str):
    """σ = 3/8, so 2σ² = 9/32: g(0) = g(2) = exp(−32/9)."""
    flat = kernels(7, 4, 1)
    deep = inflate_kernel(flat, "2g", norm, depth=3)
    assert deep.shape == (4, 1, 3, 7, 7)
    assert torch.equal(deep, inflate_kernel(flat, "1g", norm, depth=3))
    torch.testing.assert_close(deep[:, :, 0], deep[:, :, 1] * math.exp(-32 / 9))
    torch.testing.assert_close(deep[:, :, 2], deep[:, :, 0])
    kept = (deep.sum(2), flat) if norm == "sum" else (deep.norm(), flat.norm())
    torch.testing.assert_close(*kept)


def test_weights_of_long_ago_do_not_count_batches():
    old = {name: values for name, values in flat_resnet().state_dict().items() if "num_batches" not in name}
    made = inflate(old, resnet_net(), "full", "l2", "w.pth")
    assert len(made.tensors) + len(made.head) == len(old)


@pytest.mark.parametrize(
    "tensors, width, cause",
    [
        (
            lambda: resnet34().state_dict(),
            None,
            "w.pth has 64 channels and 3, 4, 6, 3 blocks, and the network 64 channels and",
        ),
        (lambda: resnet18().state_dict(), 8, "choose --architecture resnet18 --base-width 64"),
        (lambda: resnet50().state_dict(), None, "choose other --weights"),
        (
            lambda: cut(resnet18().state_dict(), "layer3.0.downsample.0.weight"),
            None,
            "what becomes layer3.0.downsample.0.weight is missing",
        ),
        (
            lambda: {**resnet18().state_dict(), "conv1.weight": torch.ones(64, 2, 7, 7)},
            None,
            "is 64×2×7×7, not 64×1×7×7",
        ),
        (
            lambda: {**resnet18().state_dict(), "se.weight": torch.ones(4)},
            None,
            "se.weight is not known in a 2D ResNet-18",
        ),
        (lambda: resnet_net(4).state_dict(), 4, "holds 3D weights already; leave --inflate out"),
        (
            lambda: source(),
            None,
            "holds a 2D ConvNeXt, and the network is a ResNet-18; choose the --architecture it is of",
        ),
        (lambda: {"x": torch.ones(2)}, None, "no 2D ResNet-18 of torchvision, by its names"),
    ],
)
def test_what_is_no_resnet_18_of_the_size_is_named(
    tensors: Callable[[], dict[str, Tensor]], width: int | None, cause: str
):
    assert cause in resnet_refusal(tensors(), width)


def test_a_resnet_for_a_convnext_is_named():
    assert "holds a 2D ResNet-18, and the network is a ConvNeXt" in refusal(flat_resnet().state_dict())
