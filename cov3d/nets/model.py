"""The model file: a network, and all that is needed to run it.

It is a safetensors file. Its header's ``cov3d`` is JSON: ``format``, ``version`` of cov3d, ``net`` (architecture and its
settings), ``heads`` (what it answers), ``preprocessing``, ``task``, ``classes``, ``training`` (a summary), and ``sha256``
of all this and the weights, so that a flipped bit in either is found. It is read in one go and checked whole; a model loads
entirely or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import cov3d
from cov3d.commit import commit
from cov3d.config import NetSettings, Preprocessing, Task, check_task, from_dict, to_dict
from cov3d.errors import ModelError, SettingError
from cov3d.labels import PRESENCE, SEVERITY
from cov3d.nets.activations import check_batch
from cov3d.nets.build import CLASSES as CLASSES_HEAD
from cov3d.nets.build import MASKS as MASKS_HEAD
from cov3d.nets.build import Heads, build
from cov3d.nets.upernet import Segmenter
from cov3d.nets.weights import check_finite, count, read_whole, size, unpack_safetensors

FORMAT = 1
CLASSES = {"presence": list(PRESENCE), "severity": list(SEVERITY)}


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode with what it was made by and for."""

    net: nn.Module
    settings: NetSettings
    preprocessing: Preprocessing
    task: Task  # what it is kept for; it answers both
    training: dict[str, Any]  # counts, epochs, best score and on what
    source: Path | None
    sha256: str  # of the whole file
    heads: Heads = (CLASSES_HEAD,)

    def classes(self, x: Tensor) -> Tensor:
        """Logits ``(B, 6)`` of scans ``(B, 1, D, H, W)`` in [0, 1]."""
        return self.net.classes(x) if isinstance(self.net, Segmenter) else self.net(x)

    def masks(self, x: Tensor) -> Tensor:
        """Logits ``(B, 1, D, H, W)`` of lesions; only a model with that head has them."""
        return cast(Segmenter, self.net).masks(x)


def save_model(
    path: str | Path,
    net: nn.Module,
    settings: NetSettings,
    preprocessing: Preprocessing,
    task: Task,
    training: Mapping[str, Any],
    heads: Heads = (CLASSES_HEAD,),
) -> Path:
    """Write a model file, whole or not at all.

    ``net`` is on any device and is not touched; its weights are written in float32. ``training`` holds plain values.

    Raises:
        Cov3dError: the file cannot be written.
    """
    tensors = {name: plain(tensor) for name, tensor in net.state_dict().items()}
    header = {
        "format": FORMAT,
        "version": cov3d.__version__,
        "net": to_dict(settings),
        "heads": list(heads),
        "preprocessing": to_dict(preprocessing),
        "task": task,
        "classes": CLASSES,
        "training": dict(training),
    }
    header["sha256"] = fingerprint(header, tensors)
    data = safetensors.torch.save(tensors, metadata={"cov3d": json.dumps(header)})
    return commit(path, lambda file: file.write(data))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Read a model file; every tensor of the network is there, of its shape and finite, and there are no others.

    Raises:
        ModelError: the file is not there, is no model of cov3d, is damaged, is of a newer cov3d, or its scans are too large
            for a GPU.
    """
    data = read_whole(path)
    tensors = unpack_safetensors(data, path)
    header = read_header(data, path)
    check_format(header, path)
    if header.get("sha256") != fingerprint(header, tensors):
        raise ModelError(f"{path} has changed since it was written: its SHA-256 is another; copy it again")
    if header.get("classes") != CLASSES:
        raise ModelError(
            f"{path} answers with other classes, {header.get('classes')}; cov3d's are {CLASSES}; train anew"
        )
    model = describe(header, path, sha256=hashlib.sha256(data).hexdigest())
    check_tensors(tensors, model.net, path)
    check_finite(tensors, path)
    model.net.load_state_dict(tensors, assign=True)
    try:
        check_batch(model.net, 1, model.preprocessing.shape, torch.device(device))
    except SettingError as error:
        raise ModelError(f"{path}: {error}") from error
    model.net.to(device).eval()
    return model


def read_header(data: bytes, path: str | Path) -> dict[str, Any]:
    """What cov3d wrote into the header of a safetensors file that has been found sound."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if "cov3d" not in metadata:
        raise ModelError(
            f"{path} has weights but not the settings of a cov3d model; it may serve as --weights of train"
        )
    try:
        header = json.loads(metadata["cov3d"])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a damaged header; copy it again")
    return header


def check_format(header: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a file of a format that this version does not know."""
    if header.get("format") != FORMAT:
        raise ModelError(
            f"{path} is of model format {header.get('format')}, written by cov3d {header.get('version')}, and this "
            f"cov3d {cov3d.__version__} knows format {FORMAT}; use the version that wrote it, or a newer one"
        )


def describe(header: Mapping[str, Any], path: str | Path, sha256: str) -> Model:
    """The model that a header describes, its network still without weights."""
    try:
        settings = from_dict(NetSettings, header["net"], "its header")
        heads = check_heads(header.get("heads", [CLASSES_HEAD]))
        with (
            torch.device("meta"),
            Unset(),
        ):  # shapes without memory: whatever the header says, the file's size is the bound
            net = build(settings, heads)
        preprocessing = from_dict(Preprocessing, header["preprocessing"], "its header")
        task, training = check_task(header["task"]), dict(header["training"])
    except Exception as error:  # a header can be wrong in any way; build says in its own words what it cannot build
        raise ModelError(f"{path} describes no model that this version of cov3d can build: {error}") from error
    return Model(net, settings, preprocessing, task, training, Path(path), sha256, heads)


class Unset(TorchFunctionMode):
    """Tensors are made and their values not set: on torch's ``meta`` device that would import half of torch's compiler."""

    SETTERS = ("normal_", "uniform_", "fill_", "zero_")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in self.SETTERS:
            return args[0] if args else kwargs["tensor"]  # torch.nn.init's functions of these names, too
        return function(*args, **(kwargs or {}))


def check_heads(heads: Any) -> Heads:
    """What a model answers, if it is something."""
    if heads not in ([CLASSES_HEAD], [MASKS_HEAD], [CLASSES_HEAD, MASKS_HEAD]):
        raise ValueError(f"answers {heads!r}, of which this version knows nothing")
    return tuple(heads)


def check_tensors(tensors: Mapping[str, Tensor], net: nn.Module, path: str | Path) -> None:
    """Refuse tensors that are not exactly the network's, by name, shape and type of number."""
    own = net.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise ModelError(
            f"{path} does not fit the network it names: missing are {count(missing)}, unknown {count(extra)} of its "
            "tensors; use the version of cov3d that wrote it, or train anew"
        )
    for name, wanted in own.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ModelError(
                f"{path} does not fit the network it names: {name} is {found.dtype} {size(found.shape)} and not "
                f"{wanted.dtype} {size(wanted.shape)}; use the version of cov3d that wrote it, or train anew"
            )


def plain(tensor: Tensor) -> Tensor:
    """A tensor as the file keeps it: on the CPU, contiguous, its memory its own, float32 if not whole numbers."""
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def fingerprint(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header as written but for its own ``sha256``, then of the tensors' bytes in the order of their names."""
    words = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(words).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
