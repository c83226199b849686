"""A model file gives back the same network with its settings, or one sentence that says what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import cov3d
from cov3d.config import NetSettings, Preprocessing
from cov3d.errors import Cov3dError, ModelError
from cov3d.nets.build import NETS, build
from cov3d.nets.model import fingerprint, load_model, save_model

torch.set_num_threads(1)

SMALL = NetSettings(base_width=4, penultimate=8, pool="max", dropout=0.3)
PREPROCESSING = Preprocessing(width=32, window_low=-1000.0)
TRAINING = {"scans": 258, "epochs": 40, "best": {"macro F1": 0.1 + 0.2, "on": "validation"}, "per class": {10: 1, 2: 3}}


def restless(settings: NetSettings) -> Any:
    """A network whose BatchNorm has seen a batch."""
    torch.manual_seed(0)
    net = build(settings).train()
    net(torch.rand(2, 1, 32, 32, 32))
    return net


def saved(path: Path, net: nn.Module | None = None, settings: NetSettings = SMALL) -> Path:
    return save_model(path, net or restless(settings), settings, PREPROCESSING, "severity", TRAINING)


def parts(path: Path) -> tuple[dict, dict]:
    """Header and tensors of a model file, read by safetensors itself."""
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["cov3d"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewrite(path: Path, change) -> None:
    """Change a model file's header and tensors as someone would who knows the format, SHA-256 included."""
    header, tensors = parts(path)
    change(header, tensors)
    header["sha256"] = fingerprint(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata={"cov3d": json.dumps(header)})


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and "weights_only" not in sentence
    return sentence


@pytest.mark.parametrize("architecture", NETS)
@torch.no_grad()
def test_a_model_comes_back_with_the_same_outputs_to_the_bit(tmp_path, architecture):
    settings = NetSettings(architecture=architecture, base_width=4, penultimate=8)
    net = restless(settings)
    model = load_model(saved(tmp_path / "new folder" / "m.safetensors", net, settings))
    x = torch.rand(2, 1, 33, 35, 32)
    assert not model.net.training and net.training  # saving leaves the network as it is
    assert torch.equal(model.net(x), net.eval()(x))
    assert [n for n, _ in model.net.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert all(p.requires_grad for p in model.net.parameters())


def test_a_model_carries_all_that_is_needed_to_run_it(tmp_path):
    path = saved(tmp_path / "m.safetensors")
    model = load_model(path)
    assert (model.settings, model.preprocessing, model.task) == (SMALL, PREPROCESSING, "severity")
    assert model.training == json.loads(json.dumps(TRAINING))
    assert model.source == path
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_programs_can_read_the_file(tmp_path):
    net = restless(SMALL)
    header, tensors = parts(saved(tmp_path / "m.safetensors", net))
    assert header["format"] == 1 and header["version"] == cov3d.__version__
    assert header["net"]["architecture"] == "resnet18" and header["preprocessing"]["depth"] == 16
    assert header["classes"]["severity"] == ["mild", "moderate", "severe", "critical"]
    assert tensors.keys() == net.state_dict().keys()
    assert all(torch.equal(tensors[name], values) for name, values in net.state_dict().items())


def test_the_same_network_gives_the_same_file(tmp_path):
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_a_network_may_be_anywhere_and_in_any_order_of_memory(tmp_path):
    net = restless(SMALL).to(memory_format=torch.channels_last_3d)
    net.layer1[1].conv2[0].weight = net.layer1[1].conv1[0].weight  # shared memory, which safetensors refuses as it is
    assert not net.layer1[0].conv1[0].weight.is_contiguous()
    model = load_model(saved(tmp_path / "m", net))
    assert all(torch.equal(values, net.state_dict()[name]) for name, values in model.net.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_on_a_gpu_is_written_and_comes_back_there(tmp_path):
    net = restless(SMALL).cuda()
    model = load_model(saved(tmp_path / "m", net), device="cuda")
    assert all(p.is_cuda for p in model.net.parameters())
    assert all(torch.equal(values, net.state_dict()[name]) for name, values in model.net.state_dict().items())


def test_the_file_may_go_once_the_model_is_loaded(tmp_path):
    path = saved(tmp_path / "m")
    model = load_model(path)
    path.write_bytes(b"")  # under a memory map this would end the process
    assert model.net.eval()(torch.rand(1, 1, 8, 32, 32)).isfinite().all()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Cov3dError, match="cannot write"):
        saved(tmp_path / "file" / "m.safetensors")


def test_a_network_that_turned_to_nan_is_refused_when_it_is_read(tmp_path):
    net = restless(SMALL)
    net.layer2[0].conv1[0].weight.data[0] = float("nan")
    assert "NaN or infinite in 1 (layer2.0.conv1.0.weight) tensors" in refusal(saved(tmp_path / "m", net))


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "is empty; copy or download it again"),
        (b"\0" * 4096, "nothing but zero bytes"),
        (b"\n<html><body>Sign in</body></html>", "is a web page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 133000000\n", "git lfs pull"),
        (pickle.dumps({"net": 1}), "is a pickle, which may run code and is never loaded"),
        (b"\xff" * 8 + b"{}", "damaged"),
        ((10**12).to_bytes(8, "little") + b"{", "damaged"),
        (b"\x02\0\0\0\0\0\0\0{}", "not the settings of a cov3d model"),
        (b"\x15\0\0\0\0\0\0\0" + b'{"__metadata__":null}', "not the settings of a cov3d model"),
    ],
)
def test_a_file_that_is_no_model_is_named_with_its_cause(tmp_path, content, cause):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert cause in refusal(path)


@pytest.mark.parametrize("suffix", ["pt", "pkl"])
def test_what_torch_saved_is_no_model(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    torch.save(restless(SMALL).state_dict(), path, _use_new_zipfile_serialization=suffix == "pt")
    assert "is a pickle" in refusal(path)


def test_weights_without_settings_are_no_model(tmp_path):
    safetensors.torch.save_file(restless(SMALL).state_dict(), tmp_path / "m")
    assert "it may serve as --weights of train" in refusal(tmp_path / "m")


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000], ids=["cut", "list", "null", "deep"])
def test_a_header_that_is_no_settings_is_damaged(tmp_path, text):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "m", metadata={"cov3d": text})
    assert "has a damaged header; copy it again" in refusal(tmp_path / "m")


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = saved(tmp_path / "m")
    data = path.read_bytes()
    for length in (1, 8, len(data) - 1, *random.Random(0).sample(range(1, len(data)), 50)):
        path.write_bytes(data[:length])
        assert "is damaged, cut short" in refusal(path)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = saved(tmp_path / "m")
    data = path.read_bytes()
    for position in (len(data) - 1, len(data) // 2, data.index(b"-1000.0") + 2, data.index(b"258") + 1):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        assert "its SHA-256 is another; copy it again" in refusal(path)


def drop_a_tensor(header, tensors):
    del tensors["layer3.1.conv2.0.weight"]


def add_a_tensor(header, tensors):
    tensors["layer5.weight"] = torch.ones(3)


def widen_a_tensor(header, tensors):
    tensors["head.3.bias"] = torch.ones(7)


def halve_a_tensor(header, tensors):
    tensors["head.3.bias"] = tensors["head.3.bias"].half()


def set_header(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(header, tensors):
        for key in keys:
            header = header[key]
        header[last] = value

    return change


def forget(key):
    return lambda header, tensors: header.pop(key)


@pytest.mark.parametrize(
    "change, cause",
    [
        (drop_a_tensor, "missing are 1 (layer3.1.conv2.0.weight), unknown 0 of its tensors"),
        (add_a_tensor, "missing are 0, unknown 1 (layer5.weight) of its tensors"),
        (widen_a_tensor, "head.3.bias is torch.float32 7 and not torch.float32 6"),
        (halve_a_tensor, "head.3.bias is torch.float16 6 and not torch.float32 6"),
        (set_header("net", "base_width", 6), "stem.0.weight is torch.float32 4×1×3×7×7 and not torch.float32 6×1"),
        (set_header("net", "penultimate", 10**15), "does not fit the network it names"),
        (set_header("net", "architecture", "resnet19"), "'resnet19' is not one of resnet18, mc3-18, r2plus1d-18"),
        (set_header("net", "architecture", "mc3-18"), "does not fit the network it names"),
        (set_header("net", "base_width", 4.0), "no model that this version of cov3d can build"),
        (set_header("net", "base_width", "4"), "no model that this version of cov3d can build"),
        (set_header("net", "pool", "median"), "no model that this version of cov3d can build"),
        (set_header("net", []), "no model that this version of cov3d can build"),
        (set_header("net", "windows", 3), "settings differ from this version's in windows"),
        (set_header("preprocessing", "width", 0), "--width 0 is out of range"),
        (set_header("task", "both of them"), "'both of them' is not one of presence, severity, both"),
        (set_header("training", 3), "no model that this version of cov3d can build"),
        (set_header("classes", "severity", ["mild", "severe"]), "answers with other classes"),
        (forget("classes"), "answers with other classes"),
        (forget("preprocessing"), "'preprocessing'"),
        (forget("format"), "is of model format None"),
        (set_header("format", 2), "is of model format 2, written by cov3d"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_its_cause(tmp_path, change, cause):
    path = saved(tmp_path / "m.safetensors")
    rewrite(path, change)
    assert cause in refusal(path)


def test_a_future_format_says_which_version_to_use(tmp_path):
    path = saved(tmp_path / "m")
    rewrite(path, lambda header, tensors: header.update(format=2, version="7.0"))
    assert "written by cov3d 7.0" in refusal(path) and "knows format 1; use the version that wrote it" in refusal(path)


def test_what_is_no_file_is_said(tmp_path):
    assert "there is no file" in refusal(tmp_path / "absent.safetensors")
    assert "is a folder; name a file in it" in refusal(tmp_path)


@pytest.mark.parametrize("net", [SMALL, NetSettings("convnext-micro", base_width=4)])
def test_loading_a_model_imports_no_compiler(tmp_path, net):
    path = save_model(tmp_path / "m", build(net), net, Preprocessing(width=32, depth=32), "both", {})
    code = f"import sys, cov3d; cov3d.load_model({str(path)!r}); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
