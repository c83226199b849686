"""The segmentation head on either family: the paper's size, its equations, and what becomes of its weights."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from cov3d.config import NetSettings, Preprocessing
from cov3d.errors import ModelError
from cov3d.nets import weights
from cov3d.nets.build import build
from cov3d.nets.model import load_model, save_model
from cov3d.nets.upernet import Decoder, resized
from cov3d.nets.weights import start_from

FAMILIES = {"convnext-micro": 4, "resnet18": 4, "mc3-18": 4}
BOTH = ("classes", "masks")
every_family = pytest.mark.parametrize("architecture", FAMILIES)


def small(architecture: str, heads: tuple[str, ...] = BOTH) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(NetSettings(architecture, base_width=FAMILIES[architecture], penultimate=8), heads)  # type: ignore[arg-type]


def volume(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_on_a_convnext_tiny_it_has_the_published_size():
    head = build(NetSettings("convnext-tiny"), BOTH).decoder
    laterals = (96 + 192 + 384 + 768) * 16 + 4 * 16
    convolutions = (64 * 16 + 16 * 16 + 16) * 7**3 + 16 + 16 + 1
    norms = 6 * 2 * 16
    assert sum(p.numel() for p in head.parameters()) == laterals + convolutions + norms == 467_857


@every_family
@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 50, 38)])
def test_a_mask_is_as_large_as_its_scan_whatever_the_sides(architecture: str, shape: tuple[int, int, int]):
    classes, masks = small(architecture).eval()(volume(2, 1, *shape))
    assert classes.shape == (2, 6) and masks.shape == (2, 1, *shape)


@every_family
def test_both_answers_are_those_of_the_one_and_the_other(architecture: str):
    net = small(architecture).eval()
    x = volume(2, 1, 32, 32, 32)
    classes, masks = net(x)
    torch.testing.assert_close(net.classes(x), classes)
    torch.testing.assert_close(net.masks(x), masks)


def test_the_head_is_the_papers_written_out_in_float64():
    torch.manual_seed(2)
    head = Decoder((4, 8)).double()
    fine, coarse = volume(1, 4, 6, 8, 7).double(), volume(1, 8, 3, 4, 4).double()
    found = head((fine, coarse), (21, 30, 28))

    def normed(x: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        weight, bias = (p.view(-1, 1, 1, 1) for p in (norm.weight, norm.bias))
        return torch.relu((x - mean) / (variance + 1e-6).sqrt() * weight + bias)

    maps = []
    for (convolution, norm, _), x in zip(head.lateral, (fine, coarse), strict=True):
        flat = torch.einsum("oc,bcdhw->bodhw", convolution.weight[..., 0, 0, 0], x)
        maps.append(normed(flat + convolution.bias.view(-1, 1, 1, 1), norm))
    maps[1] = F.interpolate(maps[1], (6, 8, 7), mode="trilinear")
    x = torch.cat(maps, 1)
    for convolution, norm, _ in head.together[:2]:
        x = normed(F.conv3d(x, convolution.weight, convolution.bias, padding=3), norm)
    x = F.conv3d(x, head.together[2].weight, head.together[2].bias, padding=3)
    expected = F.interpolate(x, (24, 32, 28), mode="trilinear")[:, :, :21, :30, :28]
    torch.testing.assert_close(found, expected)


def test_a_finer_map_is_averaged_and_a_coarser_one_interpolated():
    x = volume(1, 2, 8, 8, 2)
    averaged = x.view(1, 2, 4, 2, 4, 2, 2).mean((3, 5))
    torch.testing.assert_close(resized(x, (4, 4, 2)), averaged)
    torch.testing.assert_close(resized(x, (4, 4, 4)), F.interpolate(averaged, (4, 4, 4), mode="trilinear"))


@every_family
def test_every_parameter_that_is_kept_learns(architecture: str):
    for heads in (("masks",), BOTH):
        net = small(architecture, heads)
        classes, masks = net(volume(2, 1, 32, 32, 32))
        (masks.square().mean() + (0 if classes is None else classes.square().mean())).backward()
        idle = [name for name, p in net.named_parameters() if p.grad is None]
        assert idle == (
            [] if heads == BOTH or architecture != "convnext-micro" else ["encoder.norm.weight", "encoder.norm.bias"]
        )


@every_family
def test_recomputed_activations_are_the_encoders(architecture: str):
    net = small(architecture)
    net.checkpointing = True
    assert net.encoder.checkpointing


@every_family
@pytest.mark.parametrize("heads", [("masks",), BOTH])
def test_a_model_file_brings_both_heads_back(architecture: str, heads: tuple[str, ...], tmp_path):
    net = small(architecture, heads).eval()
    settings = NetSettings(architecture, base_width=4, penultimate=8)  # type: ignore[arg-type]
    path = save_model(
        tmp_path / "m.safetensors", net, settings, Preprocessing(width=32, depth=32), "severity", {}, heads
    )
    model = load_model(path)
    x = volume(1, 1, 32, 32, 32)
    assert model.heads == heads
    torch.testing.assert_close(model.masks(x), net.masks(x))
    if heads == BOTH:
        torch.testing.assert_close(model.classes(x), net.classes(x))


@every_family
def test_a_pretrained_encoder_is_begun_with_and_its_last_layer_is_not(architecture: str, tmp_path):
    settings = NetSettings(architecture, base_width=4, penultimate=8)  # type: ignore[arg-type]
    for heads in (("masks",), BOTH):
        pretrained = small(architecture, heads)
        path = tmp_path / f"{len(heads)}.safetensors"
        save_model(path, pretrained, settings, Preprocessing(width=32, depth=32), "severity", {}, heads)
        torch.manual_seed(5)
        net = build(settings)
        last = net.head[-1].weight.clone()
        report = start_from(net, str(path), settings)
        for name, tensor in pretrained.encoder.state_dict().items():
            if not name.startswith("head.3"):
                torch.testing.assert_close(net.state_dict()[name], tensor)
        assert torch.equal(net.head[-1].weight, last)
        hidden = [] if heads == BOTH else ["head.0.weight", "head.0.bias"]
        assert sorted(report.missing) == sorted([*hidden, "head.3.weight", "head.3.bias"])


@pytest.mark.parametrize("heads", [("masks",), BOTH])
def test_a_file_is_read_once_and_what_its_decoder_gave_is_not_called_unused(heads, tmp_path, monkeypatch):
    settings = NetSettings("convnext-micro", base_width=4, penultimate=8)
    source = small("convnext-micro", heads)
    path = save_model(tmp_path / "m.safetensors", source, settings, Preprocessing(width=32), "severity", {}, heads)
    reads = []
    read_whole = weights.read_whole
    monkeypatch.setattr(weights, "read_whole", lambda file: reads.append(file) or read_whole(file))
    torch.manual_seed(5)
    net = build(settings, BOTH)
    report = start_from(net, str(path), settings)
    assert len(reads) == 1
    own = {name for name in net.state_dict() if name.startswith("decoder.")}
    assert own <= set(report.matched) and not report.unused and not own & set(report.missing)
    assert str(report).endswith("; 0 unused")
    for name, tensor in source.decoder.state_dict().items():
        assert torch.equal(net.decoder.state_dict()[name], tensor)


def test_a_decoder_of_another_shape_is_new_and_the_files_is_unused(tmp_path):
    settings = NetSettings("convnext-micro", base_width=4, penultimate=8)
    source = small("convnext-micro", ("masks",))
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    tensors["decoder.together.2.bias"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    report = start_from(build(settings, ("masks",)), str(tmp_path / "w.safetensors"), settings)
    theirs = {name for name in tensors if name.startswith("decoder.")}
    assert set(report.unused) == theirs == set(report.missing)
    assert "(decoder.lateral.0.0.bias, decoder.lateral.0.0.weight, decoder.lateral.0.1.bias, " in str(report)


def test_heads_that_nobody_knows_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    settings = NetSettings(base_width=4, penultimate=8)
    save_model(path, small("resnet18", ("classes",)), settings, Preprocessing(width=32), "both", {}, ("eyes",))
    with pytest.raises(ModelError, match=r"describes no model .* answers \['eyes'\]"):
        load_model(path)
