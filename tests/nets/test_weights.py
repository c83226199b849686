"""Start weights move by name and shape, are counted, and no file of them ever runs."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision.models.video as video
from torch import nn
from torchvision.models import convnext_tiny, resnet18

from cov3d.config import NetSettings, Preprocessing, RunSettings, Training
from cov3d.errors import ModelError, SettingError
from cov3d.nets.build import build
from cov3d.nets.model import save_model
from cov3d.nets.weights import read_weights, start_from

torch.set_num_threads(1)

SMALL = NetSettings(base_width=4, penultimate=8)
TORCHVISION = {"resnet18": "r3d_18", "mc3-18": "mc3_18", "r2plus1d-18": "r2plus1d_18"}
ENUMS = {"resnet18": "R3D_18_Weights", "mc3-18": "MC3_18_Weights", "r2plus1d-18": "R2Plus1D_18_Weights"}

found_classes: list[str] = []  # what pickle looked up while `watching`; a hook cannot be taken away again
watching = False


def note_pickle(event: str, arguments: tuple) -> None:
    if watching and event == "pickle.find_class":
        found_classes.append(".".join(arguments))


sys.addaudithook(note_pickle)


@pytest.fixture
def pickle_watch():
    global watching
    found_classes.clear()
    watching = True
    yield found_classes
    watching = False


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def small_net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(SMALL)


def colour_weights(seed: int = 1) -> dict[str, torch.Tensor]:
    """A state dict as torchvision's would be at this width: three colours, and a head of 400 classes."""
    weights = {name: values for name, values in small_net(seed).state_dict().items() if not name.startswith("head.")}
    weights["stem.0.weight"] = torch.randn(4, 3, 3, 7, 7)
    return {**weights, "fc.weight": torch.randn(400, 32), "fc.bias": torch.randn(400)}


def saved(path: Path, content: object, **options) -> str:
    torch.save(content, path, **options)
    return str(path)


def same(net: nn.Module, weights: dict[str, torch.Tensor], names) -> bool:
    return all(torch.equal(net.state_dict()[name], weights[name]) for name in names)


def refusal(net: nn.Module, weights: str) -> str:
    """The one sentence with which a file is refused; the network is as it was."""
    before = {name: values.clone() for name, values in net.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        start_from(net, weights, SMALL)
    assert same(net, before, before)
    sentence = str(caught.value)
    assert "\n" not in sentence and "weights_only" not in sentence
    return sentence


def test_none_leaves_the_network_alone():
    net = small_net()
    before = {name: values.clone() for name, values in net.state_dict().items()}
    report = start_from(net, "none", SMALL)
    assert same(net, before, before)
    assert report.missing == tuple(before) and not report.matched
    assert str(report) == f"weights: none, {len(before)} tensors are random"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_is_matched_by_name_and_its_stem_summed_over_colours(tmp_path, zipped):
    net, weights = small_net(), colour_weights()
    head = net.state_dict()["head.0.weight"].clone()
    file = saved(tmp_path / "w.pth", weights, _use_new_zipfile_serialization=zipped)
    report = start_from(net, file, SMALL)

    red, green, blue = weights["stem.0.weight"].unbind(1)
    torch.testing.assert_close(net.stem[0].weight[:, 0], red + green + blue)
    assert report.changed == ("stem.0.weight",)
    assert report.missing == ("head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias")
    assert report.unused == ("fc.weight", "fc.bias")
    assert len(report.matched) == len(weights) - 2
    assert same(net, weights, set(report.matched) - set(report.changed))
    assert torch.equal(net.state_dict()["head.0.weight"], head)
    assert str(report) == (
        f"weights from {file}: {len(report.matched)} tensors matched, 1 of them summed over input channels; "
        "4 (head.0.weight, head.0.bias, head.3.weight, head.3.bias) new; 2 (fc.bias, fc.weight) unused"
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights, "opt": {"lr": 0.1}},
        lambda weights: {f"module.{name}": values for name, values in weights.items()},
        lambda weights: {"state_dict": {f"module.{name}": values for name, values in weights.items()}},
        lambda weights: {**weights, "epoch": 3, 7: "seven"},
    ],
    ids=["state_dict", "model", "parallel", "parallel in state_dict", "plain values beside"],
)
def test_a_state_dict_may_be_kept_in_the_usual_ways(tmp_path, wrap):
    net, weights = small_net(), small_net(5).state_dict()
    report = start_from(net, saved(tmp_path / "w.pt", wrap(weights)), SMALL)
    assert same(net, weights, weights)
    assert not report.missing and not report.unused and not report.changed


def test_safetensors_are_matched_too(tmp_path):
    net, weights = small_net(), colour_weights()
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    report = start_from(net, str(tmp_path / "w.safetensors"), SMALL)
    assert len(report.matched) == len(weights) - 2 and same(net, weights, set(report.matched) - {"stem.0.weight"})


def test_a_model_of_cov3d_serves_with_its_head_where_that_fits(tmp_path):
    trained = small_net(3)
    file = str(save_model(tmp_path / "m.safetensors", trained, SMALL, Preprocessing(width=32), "both", {}))
    net = small_net()
    assert not start_from(net, file, SMALL).missing
    assert same(net, trained.state_dict(), trained.state_dict())

    other = NetSettings(base_width=4, penultimate=16)
    report = start_from(build(other), file, other)
    assert set(report.missing) == set(report.unused) == {"head.0.weight", "head.0.bias", "head.3.weight"}  # one fits


def test_weights_in_half_precision_are_widened(tmp_path):
    net, weights = small_net(), {n: v.half() if v.is_floating_point() else v for n, v in colour_weights().items()}
    start_from(net, saved(tmp_path / "half.pt", weights), SMALL)
    assert net.stem[0].weight.dtype == torch.float32
    torch.testing.assert_close(net.stem[0].weight, weights["stem.0.weight"].float().sum(1, keepdim=True))


def test_a_network_of_another_width_is_named_with_both_shapes(tmp_path):
    sentence = refusal(small_net(), saved(tmp_path / "w.pt", build(NetSettings(base_width=6)).state_dict()))
    assert "its stem.0.weight is 6×1×3×7×7, not 4×1×3×7×7; choose the --architecture and --base-width" in sentence


def test_a_file_of_which_nothing_matches_is_refused(tmp_path):
    sentence = refusal(small_net(), saved(tmp_path / "w.pt", {"conv1.weight": torch.ones(64, 3, 7, 7)}))
    assert "none of its 1 tensors has the name of one of ours, such as stem.0.weight" in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    weights = colour_weights()
    weights["layer1.0.conv1.0.weight"][0, 0] = value
    sentence = refusal(small_net(), saved(tmp_path / "w.pt", weights))
    assert "NaN or infinite in 1 (layer1.0.conv1.0.weight) tensors" in sentence


@pytest.mark.parametrize("exotic", [lambda: torch.eye(4).to_sparse(), lambda: torch.ones(4, device="meta")])
def test_tensors_that_are_not_plain_numbers_count_as_not_there(tmp_path, exotic):
    weights = {**colour_weights(), "stem.1.weight": exotic()}
    assert "it has no 1 (stem.1.weight)" in refusal(small_net(), saved(tmp_path / "w.pt", weights))


@pytest.mark.parametrize(
    ("made", "wanted", "cause"), [("tiny", "small", "it has no 162"), ("small", "tiny", "besides")]
)
def test_weights_of_a_deeper_or_shallower_network_are_refused(tmp_path, made, wanted, cause):
    nets = [build(NetSettings(f"convnext-{name}", base_width=4, penultimate=8)) for name in (made, wanted)]
    sentence = refusal(nets[1], saved(tmp_path / "w.pt", nets[0].state_dict()))
    assert cause in sentence and "choose the --architecture it was made with" in sentence


def hostile_files() -> dict:
    """Every way to put the payload into a file, by name."""
    return {
        "raw": lambda path, payload: path.write_bytes(pickle.dumps(payload)),
        "raw, protocol 0": lambda path, payload: path.write_bytes(pickle.dumps(payload, protocol=0)),
        "zip": lambda path, payload: torch.save({"state_dict": payload}, path),
        "legacy": lambda path, payload: torch.save({"a": payload}, path, _use_new_zipfile_serialization=False),
        "beside good weights": lambda path, payload: torch.save({**colour_weights(), "x": payload}, path),
        "whole network": lambda path, payload: torch.save(small_net(), path),
    }


@pytest.mark.parametrize("kind", hostile_files())
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, kind, pickle_watch):
    file = tmp_path / "evil.pth"
    hostile_files()[kind](file, Payload(tmp_path / "ran"))
    pickle_watch.clear()
    sentence = refusal(small_net(), str(file))
    assert sentence.startswith(str(file))
    assert not (tmp_path / "ran").exists()
    assert pickle_watch == []


def test_the_payload_and_the_watch_do_work(tmp_path, pickle_watch):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").exists()
    assert pickle_watch == [f"{os.mkdir.__module__}.mkdir"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_good_weights_are_not_unpickled_either(tmp_path, pickle_watch, zipped):
    file = saved(tmp_path / "w.pth", colour_weights(), _use_new_zipfile_serialization=zipped)
    start_from(small_net(), file, SMALL)
    assert pickle_watch == []


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "is empty"),
        (b"\0" * 5000, "nothing but zero bytes"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04 and no more", "damaged or cut short"),
        (b"\x80\x02 and no more", "is damaged or holds Python objects"),
        (b"\x08\0\0\0\0\0\0\0{} and no m", "damaged, cut short, or no file of weights"),
        (b"a,b\n1,2\n", "damaged, cut short, or no file of weights"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_cause(tmp_path, content, cause):
    file = tmp_path / "w.pth"
    file.write_bytes(content)
    sentence = refusal(small_net(), str(file))
    assert sentence.startswith(str(file)) and cause in sentence


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_is_refused(tmp_path, kind, kept):
    file = tmp_path / "w"
    if kind == "safetensors":
        safetensors.torch.save_file(colour_weights(), file)
    else:
        saved(file, colour_weights(), _use_new_zipfile_serialization=kind == "zip")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    assert "damaged" in refusal(small_net(), str(file))


def test_what_is_no_file_is_said(tmp_path):
    assert "there is no file" in refusal(small_net(), str(tmp_path / "absent.pth"))
    assert "is a folder" in refusal(small_net(), str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "no ordinary file" in refusal(small_net(), str(tmp_path / "pipe"))
    assert "cannot read" in refusal(small_net(), "a\0b")


@pytest.mark.parametrize(
    "error, cause",
    [(PermissionError(13, "Permission denied"), "Permission denied"), (MemoryError(), "fit into memory")],
)
def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch, error, cause):
    def refuse(path):
        raise error

    (tmp_path / "w.pt").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert cause in refusal(small_net(), str(tmp_path / "w.pt"))


class FakeDownload:
    """In place of torchvision's download: gives a state dict or raises, and notes how it was asked."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, entry, **options):
        self.entry, self.options = entry, options
        print("Downloading: as torch announces it")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Let `download(architecture, answer)` stand for the network, with an empty folder of torch hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def replace(architecture, answer):
        fake = FakeDownload(answer)
        monkeypatch.setattr(getattr(video, ENUMS[architecture]), "get_state_dict", lambda *a, **k: fake(*a, **k))
        return fake

    return replace


@pytest.mark.parametrize("architecture", TORCHVISION)
def test_kinetics_weights_fill_the_body_and_sum_the_stem(architecture, download, capsys):
    theirs = getattr(video, TORCHVISION[architecture])().state_dict()
    fake = download(architecture, theirs)
    settings = NetSettings(architecture=architecture)
    net: Any = build(settings)
    report = start_from(net, "kinetics", settings)

    assert torch.equal(net.stem[0].weight, theirs["stem.0.weight"].sum(1, keepdim=True))
    assert same(net, theirs, set(report.matched) - {"stem.0.weight"})
    assert report.changed == ("stem.0.weight",) and report.unused == ("fc.weight", "fc.bias")
    assert report.missing == ("head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias")
    assert len(report.matched) == len(theirs) - 2
    assert fake.options == {"progress": False, "check_hash": True, "map_location": "cpu", "weights_only": True}
    printed = capsys.readouterr()
    assert printed.out == "" and "Downloading" in printed.err  # standard output is for results


@pytest.mark.parametrize("error", [URLError("no route"), TimeoutError("timed out"), RuntimeError("invalid hash value")])
def test_without_a_network_the_sentence_says_how_to_bring_the_file(error, download, tmp_path):
    download("resnet18", error)
    settings = NetSettings()
    with torch.device("meta"):
        net = build(settings)
    with pytest.raises(ModelError) as caught:
        start_from(net, "kinetics", settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and str(error) in sentence
    for word in ("r3d_18-b3b3357e.pth", str(tmp_path / "checkpoints"), "--weights FILE", "--weights none"):
        assert word in sentence


def test_a_damaged_file_in_torchs_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "r3d_18-b3b3357e.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"half a download")
    with torch.device("meta"):
        net = build(NetSettings())
    with pytest.raises(ModelError, match=r"r3d_18-b3b3357e\.pth is damaged or cannot be read; delete it and run again"):
        start_from(net, "kinetics", NetSettings())


def test_a_file_brought_by_hand_into_torchs_folder_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    theirs = video.mc3_18().state_dict()
    torch.save(theirs, tmp_path / "checkpoints" / "mc3_18-a90a0ba3.pth")
    settings = NetSettings(architecture="mc3-18")
    net: Any = build(settings)
    start_from(net, "kinetics", settings)
    assert torch.equal(net.stem[0].weight, theirs["stem.0.weight"].sum(1, keepdim=True))


def test_kinetics_weights_are_for_one_width():
    with pytest.raises(SettingError, match="for --base-width 64 and not 4; say --weights none"):
        start_from(small_net(), "kinetics", SMALL)


def test_a_header_of_any_length_is_no_pickle(tmp_path: Path):
    """128 is also the byte that pickles begin with."""
    path = tmp_path / "w.safetensors"
    lengths = set()
    for note in range(0, 256, 8):
        safetensors.torch.save_file({"x": torch.zeros(2)}, path, metadata={"note": "n" * note})
        lengths.add(path.read_bytes()[0])
        assert list(read_weights(path)) == ["x"]
    assert 128 in lengths


# Of a 2D ConvNeXt

TINY = NetSettings(architecture="convnext-tiny")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Torchvision's convnext_tiny with random weights, as a file."""
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("flat") / "convnext.pth", convnext_tiny().state_dict())


@pytest.mark.parametrize("how", ["full", "1g", "2g"])
@pytest.mark.parametrize("norm", ["l2", "sum"])
def test_2d_weights_are_inflated_and_counted(flat, how, norm):
    net: Any = build(TINY)
    head = net.state_dict()["head.0.weight"].clone()
    report = start_from(net, flat, TINY, how, norm)
    theirs = read_weights(flat)

    ours = net.stages[2][8].dwconv.weight.double()
    kernel = theirs["features.5.8.block.0.weight"].double()
    kept = (ours.norm(), kernel.norm()) if norm == "l2" else (ours.sum((2, 3, 4)), kernel.sum((2, 3)))
    torch.testing.assert_close(*kept, rtol=1e-6, atol=1e-6)
    assert torch.equal(net.norm.weight, theirs["classifier.0.weight"])
    assert torch.equal(net.state_dict()["head.0.weight"], head)
    assert len(report.matched) == len(theirs) - 2 == len(net.state_dict()) - 4
    assert report.changed == ("downsample_layers.0.0.weight",)
    assert report.unused == ("classifier.2.weight", "classifier.2.bias")
    assert report.missing == ("head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias")
    assert str(report) == (
        f"weights from {flat}: 180 tensors matched, 22 of them inflated to 3D, 1 of them summed over input channels; "
        "4 (head.0.weight, head.0.bias, head.3.weight, head.3.bias) new; 2 (classifier.2.bias, classifier.2.weight) unused"
    )


@pytest.mark.parametrize("architecture", ["convnext-tiny", "resnet18"])
def test_2d_weights_that_are_not_inflated_are_refused_with_advice(flat, architecture):
    with torch.device("meta"):
        net = build(NetSettings(architecture=architecture))
    with pytest.raises(ModelError, match="of a 2D ConvNeXt; say --inflate full, 1g or 2g, with a ConvNeXt"):
        start_from(net, flat, NetSettings(architecture=architecture))


def test_2d_weights_of_another_depth_leave_the_network_as_it_was(flat):
    settings = NetSettings(architecture="convnext-small", base_width=4)
    net = build(settings)
    before = {name: values.clone() for name, values in net.state_dict().items()}
    with pytest.raises(ModelError, match="choose --architecture convnext-tiny --base-width 96"):
        start_from(net, flat, settings, "2g")
    assert same(net, before, before)


def test_a_file_to_be_inflated_that_would_run_code_is_refused_too(tmp_path, pickle_watch):
    file = tmp_path / "evil.pth"
    torch.save({**convnext_tiny().state_dict(), "x": Payload(tmp_path / "ran")}, file)
    pickle_watch.clear()
    with pytest.raises(ModelError, match="Python objects"):
        start_from(build(TINY), str(file), TINY, "full")
    assert not (tmp_path / "ran").exists() and pickle_watch == []


@pytest.mark.parametrize("architecture", ["mc3-18", "r2plus1d-18"])
def test_what_differs_along_depth_is_not_inflated(architecture):
    settings = NetSettings(architecture=architecture, base_width=4)
    with pytest.raises(
        SettingError, match=f"--inflate is for ConvNeXts and resnet18, not {architecture}; leave it out"
    ):
        start_from(build(settings), "w.pth", settings, "full")


def test_a_2d_resnet_is_inflated_and_counted_and_refused_otherwise(tmp_path):
    """16 kernels in blocks, 3 in shortcuts, the stem; 20 norms of 5 tensors."""
    file = saved(tmp_path / "resnet18.pth", resnet18().state_dict())
    net = build(NetSettings())
    report = start_from(net, file, NetSettings(), "2g")
    assert str(report).startswith(
        f"weights from {file}: 120 tensors matched, 20 of them inflated to 3D, 1 of them summed over input channels; "
    )
    assert report.missing == ("head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias")
    assert report.unused == ("fc.weight", "fc.bias")
    with pytest.raises(ModelError, match="of a 2D ResNet-18; say --inflate full, 1g or 2g, with resnet18 as --archit"):
        start_from(net, file, NetSettings())


@pytest.mark.parametrize(
    "net, training, cause",
    [
        (
            NetSettings("mc3-18"),
            Training(weights="w.pth", inflate="2g"),
            "--inflate is for ConvNeXts and resnet18, not mc3",
        ),
        (TINY, Training(inflate="full"), "2D weights, and --weights is none; name the file"),
        (SMALL, Training(weights="kinetics", inflate="1g"), "leave"),
        (TINY, Training(weights="w.pth", inflate_norm="sum"), "--inflate-norm sum needs --inflate full, 1g or 2g"),
    ],
)
def test_settings_of_inflation_that_exclude_each_other_are_refused(net, training, cause):
    with pytest.raises(SettingError, match=cause):
        RunSettings(net=net, training=training)


def test_inflation_is_a_setting_of_a_run():
    training = RunSettings(net=TINY, training=Training(weights="w.pth", inflate="2g", inflate_norm="sum")).training
    assert (training.inflate, training.inflate_norm) == ("2g", "sum")
    with pytest.raises(SettingError, match="--inflate '3g' is not one of none, full, 1g, 2g"):
        Training(inflate="3g")  # type: ignore[arg-type]
