"""Weights to start from: none, Kinetics-400, or a file.

Tensors are moved by name and shape, never by position, and counted. Kinetics-400 weights (Kay et al., arXiv 1705.06950)
are torchvision's; they see three colours, and since a grey scan shows each the same, the stem's kernels are
summed over them. Nothing of a file is ever unpickled: it holds tensors or it is refused.
"""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cov3d.config import NetSettings
from cov3d.config.pictures import FLAT
from cov3d.errors import ModelError, SettingError
from cov3d.nets.inflate import inflate as inflate_tensors
from cov3d.nets.inflate_names import CONVNEXT, scheme
from cov3d.nets.upernet import Segmenter
from cov3d.runs import FLAT_WEIGHTS, KEPT

KINETICS = {"resnet18": "R3D_18_Weights", "mc3-18": "MC3_18_Weights", "r2plus1d-18": "R2Plus1D_18_Weights"}
KINETICS_WIDTH = 64
ENCODER, LAST, DECODER = "encoder.", "encoder.head.3.", "decoder."  # of a Segmenter
HEAD = "head."  # what the names of a network's last layers begin with: the part that may be of another shape

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Report:
    """What became of the tensors of ``source``, by name."""

    source: str
    matched: tuple[str, ...]  # moved into the network
    changed: tuple[str, ...]  # those of them that were summed over their input channels
    missing: tuple[str, ...]  # in the network and still random, since the file has none of that name and shape
    unused: tuple[str, ...]  # in the file only
    inflated: tuple[str, ...] = ()  # those matched that were kernels of 2D and are now of 3D

    def __str__(self) -> str:
        if not self.matched:
            return f"weights: none, {len(self.missing)} tensors are random"
        inflated = f"{len(self.inflated)} of them inflated to 3D, " if self.inflated else ""
        return (
            f"weights from {self.source}: {len(self.matched)} tensors matched, {inflated}"
            f"{len(self.changed)} of them summed over input channels; {count(self.missing)} new; "
            f"{count(sorted(self.unused))} unused"
        )


def start_from(
    net: nn.Module, weights: str, settings: NetSettings, inflate: str = "none", inflate_norm: str = "l2"
) -> Report:
    """Give ``net`` the weights to start from: ``none``, ``kinetics``, or the name of a file; all of them or an error.

    A file is safetensors (a cov3d model too) or a state dict saved by torch, bare or under ``state_dict`` or ``model``.
    One of a 2D ConvNeXt or ResNet-18 needs ``inflate``: ``full``, ``1g`` or ``2g`` (:mod:`cov3d.nets.inflate`). Of a network
    that draws masks the encoder begins with them, and the decoder if there is one of its shape.

    Raises:
        SettingError: the Kinetics weights are of another width, or ``inflate`` is for another architecture.
        ModelError: they cannot be had, or the file is damaged, holds more than tensors, or fits another network.
    """
    if inflate != "none" and settings.architecture not in FLAT:
        raise SettingError(f"--inflate is for ConvNeXts and resnet18, not {settings.architecture}; leave it out")
    if weights == "none":
        return Report("none", (), (), tuple(net.state_dict()), ())
    tensors = kinetics(settings) if weights == "kinetics" else read_weights(weights)
    if isinstance(net, Segmenter):
        return go_on(net.decoder, tensors, begin(net.encoder, tensors, weights, inflate, inflate_norm))
    return begin(net, tensors, weights, inflate, inflate_norm)


def begin(net: nn.Module, tensors: Tensors, source: str, inflate: str, inflate_norm: str) -> Report:
    """Give a network that only answers the tensors of ``source``, inflated if they are to be."""
    if inflate == "none":
        return move(tensors, net, source)
    made = inflate_tensors(tensors, net, inflate, inflate_norm, source)
    return replace(move(made.tensors, net, source), changed=made.summed, unused=made.head, inflated=made.kernels)


def go_on(decoder: nn.Module, tensors: Tensors, report: Report) -> Report:
    """Give a decoder the tensors of one of its shape, if they are there: a pretraining goes on with it. The report, with them."""
    own = {DECODER + name: tensor.shape for name, tensor in decoder.state_dict().items()}
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER)}
    if {name: tensor.shape for name, tensor in found.items()} != own:
        return replace(report, missing=(*report.missing, *own))
    decoder.load_state_dict({name.removeprefix(DECODER): tensor for name, tensor in found.items()})
    unused = tuple(name for name in report.unused if name not in found)
    return replace(report, matched=(*report.matched, *own), unused=unused)


def move(tensors: Mapping[str, Tensor], net: nn.Module, source: str) -> Report:
    """Copy tensors into ``net`` where name and shape agree. A head of another shape stays new; a body of another is an error."""
    if flat := scheme(tensors):
        net_3d = "a ConvNeXt" if flat.kind == CONVNEXT else "resnet18"
        raise ModelError(
            f"{source} holds the weights of a 2D {flat.kind}; say --inflate full, 1g or 2g, with {net_3d} as --architecture"
        )
    own = net.state_dict()
    fitting, changed = {}, []
    for name in (name for name in own if name in tensors):
        tensor, wanted = tensors[name], own[name].shape
        if tensor.shape == wanted:
            fitting[name] = tensor
        elif is_colour(tensor) and wanted == (len(tensor), 1, *tensor.shape[2:]):
            fitting[name] = tensor.float().sum(1, keepdim=True)  # (w, 3, kd, kh, kw) -> (w, 1, kd, kh, kw)
            changed.append(name)
        elif not name.startswith(HEAD):
            raise ModelError(
                f"{source} fits another network: its {name} is {size(tensor.shape)}, not {size(wanted)}; "
                "choose the --architecture and --base-width it was made with, or other --weights"
            )
    if not fitting:
        raise ModelError(
            f"{source} fits another network: none of its {len(tensors)} tensors has the name of one of ours, such as "
            f"{next(iter(own))}; choose other --weights"
        )
    check_depth(own, fitting, tensors, source)
    net.load_state_dict(fitting, strict=False)
    return Report(
        source=source,
        matched=tuple(name for name in own if name in fitting),
        changed=tuple(changed),
        missing=tuple(name for name in own if name not in fitting),
        unused=tuple(name for name in tensors if name not in fitting),
    )


def check_depth(
    own: Mapping[str, Tensor], fitting: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str
) -> None:
    """Refuse a network with more or fewer layers: what it lacks would stay random, what it has besides would be lost."""
    body = {name.split(".")[0] for name in own if not name.startswith(HEAD)}
    lacking = [name for name in own if name not in fitting and not name.startswith(HEAD) and not is_count(name)]
    besides = [name for name in tensors if name not in fitting and name.split(".")[0] in body and not is_count(name)]
    if lacking or besides:
        lacks = f"has no {count(lacking)}" if lacking else f"has {count(besides)} besides"
        raise ModelError(
            f"{source} fits another network: it {lacks}; choose the --architecture it was made with, or other --weights"
        )


def is_count(name: str) -> bool:
    """Whether a tensor only counts the batches that a BatchNorm has seen; old files have none."""
    return name.endswith("num_batches_tracked")


def kinetics(settings: NetSettings) -> Tensors:
    """Torchvision's Kinetics-400 weights, downloaded once and checked by their SHA-256."""
    if settings.architecture not in KINETICS:
        raise SettingError(f"there are no Kinetics weights of {settings.architecture}; say --weights none, or a file")
    if settings.numbers.base_width != KINETICS_WIDTH:
        raise SettingError(
            f"the Kinetics weights are for --base-width {KINETICS_WIDTH} and not {settings.base_width}; say --weights none"
        )
    import torchvision.models.video as video  # here, since only training's start needs it

    entry = getattr(video, KINETICS[settings.architecture]).KINETICS400_V1
    name, folder = entry.url.rpartition("/")[2], Path(torch.hub.get_dir(), "checkpoints")
    try:
        with redirect_stdout(sys.stderr):  # torch announces the download on standard output, which is for results
            return entry.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:  # no network, a wrong SHA-256, a damaged file: torch and urllib have many words for it
        if (folder / name).exists():
            raise ModelError(f"{folder / name} is damaged or cannot be read; delete it and run again") from None
        raise ModelError(
            f"the Kinetics weights cannot be downloaded ({error}); on another machine download {name}, which torchvision's "
            f"page of video models names, and put it into {folder} or give it with --weights FILE; or say --weights none"
        ) from error


def read_weights(path: str | Path) -> Tensors:
    """The tensors of a file by name, all of them finite.

    Without the ``module.`` that parallel training adds, and the ``encoder.`` of a network that draws masks. Of such a one the
    last layer is left out: what it answered is not what is learnt next.
    """
    path = kept_in(Path(path))
    data = read_whole(path)
    tensors = unpack_torch(data, path) if is_pickled(data) else unpack_safetensors(data, path)
    check_finite(tensors, path)
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name.removeprefix(ENCODER): tensor for name, tensor in named.items() if not name.startswith(LAST)}


def kept_in(path: Path) -> Path:
    """The only model or weights that a run's folder keeps; any other path as it is.

    Raises:
        ModelError: it keeps several.
    """
    found = [path / name for name in (*KEPT, FLAT_WEIGHTS) if (path / name).is_file()]
    if len(found) > 1:
        raise ModelError(f"{path} keeps {' and '.join(file.name for file in found)}; name one of them")
    return found[0] if found else path


def read_whole(path: str | Path) -> bytes:
    """All bytes of a model or weights file in one read, so that a file that changes meanwhile cannot hurt."""
    path = Path(path)
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is no ordinary file; copy it into one")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}; check its name") from error
    except (OSError, ValueError, MemoryError) as error:
        cause = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise ModelError(f"cannot read {path}: {cause}; check the file") from error


def unpack_safetensors(data: bytes, path: str | Path) -> Tensors:
    """The tensors in the bytes of a safetensors file."""
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # SafetensorError, and KeyError for a type of number torch does not have
        raise ModelError(f"{path} {what_is_wrong(data)}") from error


def unpack_torch(data: bytes, path: str | Path) -> Tensors:
    """The tensors in the bytes of a file that torch saved, old format or new."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hostile files torch says a lot before it refuses them
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return plain_tensors(content)
    except pickle.UnpicklingError:  # from None: its text advises to load the file all the same
        raise ModelError(
            f"{path} is damaged or holds Python objects, which may run code and are never loaded; where you trust it, "
            "save the weights alone: safetensors, or torch.save(net.state_dict(), FILE)"
        ) from None
    except Exception as error:  # torch has many words for a damaged file
        raise ModelError(f"{path} is damaged or cut short; copy or download it again") from error


def plain_tensors(content: Any) -> Tensors:
    """The tensors of a state dict, bare or under one of the names it is usually kept by; not sparse or quantised ones."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = content if isinstance(content, Mapping) else {}
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor) and is_plain(value)}


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that are no numbers."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"{path} has weights that are NaN or infinite in {count(bad)} tensors; use another epoch's file"
        )


def what_is_wrong(data: bytes) -> str:
    """What is wrong with a file that should be safetensors, from its first bytes, and what to do."""
    if not data:
        return "is empty; copy or download it again"
    if not data.strip(b"\0"):
        return "holds nothing but zero bytes; copy or download it again"
    if b"git-lfs" in data[:100]:
        return "is a git-LFS pointer and not the file it stands for; fetch that with git lfs pull"
    if data[:100].lstrip().startswith(b"<"):
        return "is a web page; download the file itself"
    if is_pickled(data):
        return (
            "is a pickle, which may run code and is never loaded; cov3d's models are safetensors, as train writes them"
        )
    return "is damaged, cut short, or no file of weights; copy or download it again"


def is_pickled(data: bytes) -> bool:
    """Whether a file begins as torch's zip archives or as a pickle does."""
    # A safetensors file begins with its header's length, whose lowest byte may be any; then the header's brace.
    return data.startswith((b"PK\x03\x04", b"\x80")) and data[8:9] != b"{"


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in memory, one after the other."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def is_colour(tensor: Tensor) -> bool:
    """Whether a tensor is the kernel of a convolution ``(outputs, 3, kd, kh, kw)`` that sees three channels."""
    return tensor.dim() == 5 and tensor.shape[1] == 3


def size(shape: Sequence[int]) -> str:
    """``64×1×3×7×7``."""
    return "×".join(map(str, shape)) or "a number"


def count(names: Sequence[str]) -> str:
    """``2 (fc.weight, fc.bias)``, the first few by name."""
    if not names:
        return "0"
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
