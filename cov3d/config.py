"""Every setting: its name, type, default, help and limits, and the combinations that cannot be.

A group of settings is a frozen dataclass. :mod:`cov3d.options` turns its fields into command-line options; the whole
group travels down to the functions it steers, into the run's ``config.json`` and into the model file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from cov3d.errors import SettingError
from cov3d.labels import TASKS

Task = Literal["presence", "severity", "both"]
Architecture = Literal[
    "resnet18", "mc3-18", "r2plus1d-18", "convnext-micro", "convnext-tiny", "convnext-small", "convnext-base"
]
Family = Literal["resnet", "convnext"]

# A SeriesInstanceUID, and what is written in its place.
UID, HIDDEN_UID = r"[0-9.]{1,64}", r"sha256:[0-9a-f]{16}"

# λ of the joint loss: how much severity counts, by what the model is kept for.
SEVERITY_FACTOR = {"presence": 0.1, "severity": 0.9, "both": 0.5}

Settings = TypeVar("Settings")


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field of a settings group: one default, one help text; ``min`` and ``max``; ``flag`` for a switch without a ``--no-``."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Reading:
    """How a scan's files are understood. It belongs to the files, not to a model: a model file does not hold it."""

    range: Literal["auto", "hu", "grey"] = option(
        "auto", "What stored values are: HU, or grey levels already windowed; auto looks at them."
    )
    series: str = option("largest", "Which DICOM series of a folder: largest, all, or a SeriesInstanceUID.")
    allow_gaps: bool = option(
        False, "Read volumes with missing slices, uneven distances or a tilted gantry.", flag="--allow-gaps"
    )
    strict: bool = option(False, "Fail a scan for any slice that is unreadable, odd or missing.", flag="--strict")

    def __post_init__(self) -> None:
        _check_limits(self)
        if not re.fullmatch(f"largest|all|{UID}|{HIDDEN_UID}", self.series):
            raise SettingError(f"--series {self.series!r} is not largest, all, or a SeriesInstanceUID")
        if self.strict and self.allow_gaps:
            raise SettingError("--strict and --allow-gaps exclude each other; leave one of them")

    @property
    def meaning(self) -> dict[str, str]:
        """What a voxel depends on, as it may be written; the other settings only decide which scans are read."""
        return {"range": self.range, "series": hide_uid(self.series)}


@dataclass(frozen=True)
class Preprocessing:
    """How a scan becomes a tensor. Whatever changes a voxel stands here, and so in the cache's key and the model file."""

    width: int = option(256, "Width and height of a cached scan, in voxels.", min=16, max=2048)
    depth: int | None = option(None, "Slices of a cached scan; half the width if not said.", min=1, max=2048)
    window_low: float = option(-1150.0, "HU that becomes black; scans in grey levels are taken as already windowed.")
    window_high: float = option(350.0, "HU that becomes white.")
    crop: Literal["none", "lungs"] = option("none", "Cut the scan to the box of its lungs before it is resized.")

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.depth is None:
            if self.width % 2:
                raise SettingError(
                    f"--width {self.width} is odd, so half of it is no number of slices; "
                    f"choose {self.width + 1}, or say --depth"
                )
            object.__setattr__(self, "depth", self.width // 2)
        if not self.window_low < self.window_high:
            raise SettingError(
                f"the window {self.window_low:g}…{self.window_high:g} HU is empty; its low end comes first"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(D, H, W)`` in voxels."""
        assert self.depth is not None  # __post_init__ has set it
        return self.depth, self.width, self.width


class NetNumbers(NamedTuple):
    """The numbers of a network's settings."""

    base_width: int
    dropout: float
    penultimate: int
    drop_path: float


# As published: Turnbull (arXiv 2207.12218) for ResNets, Kienzle et al. (arXiv 2206.15073) for ConvNeXts.
PUBLISHED_NETS: dict[str, NetNumbers] = {
    **dict.fromkeys(("resnet18", "mc3-18", "r2plus1d-18"), NetNumbers(64, 0.5, 512, 0.0)),
    "convnext-micro": NetNumbers(64, 0.0, 512, 0.1),
    "convnext-tiny": NetNumbers(96, 0.0, 768, 0.1),
    "convnext-small": NetNumbers(96, 0.0, 768, 0.4),
    "convnext-base": NetNumbers(128, 0.0, 1024, 0.5),
}


@dataclass(frozen=True)
class NetSettings:
    """Which network."""

    architecture: Architecture = option(
        "resnet18", "The network: a 3D ResNet of torchvision's family, or a 3D ConvNeXt."
    )
    base_width: int | None = option(
        None, "Channels of the first stage; as published if not said; 8 to 16 train on a CPU.", min=2, max=256
    )
    pool: Literal["avg", "max"] = option("avg", "How features are pooled over the volume.")
    dropout: float | None = option(
        None,
        "Share of features dropped: .5 after each stage and in the head of a ResNet; 0, a ConvNeXt's head only.",
        min=0.0,
        max=0.95,
    )
    penultimate: int | None = option(None, "Features of the head's hidden layer; as published if not said.", min=1)
    drop_path: float | None = option(
        None, "Share of a ConvNeXt's deepest branches dropped in training; as published if not said.", min=0.0, max=0.95
    )

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.drop_path and self.family != "convnext":
            raise SettingError(f"--drop-path is for ConvNeXts; --architecture {self.architecture} has none")

    @property
    def family(self) -> Family:
        """What kind of network it is."""
        return "convnext" if self.architecture.startswith("convnext") else "resnet"

    @property
    def numbers(self) -> NetNumbers:
        """Its numbers: those that were said, and the published ones for the others."""
        published = PUBLISHED_NETS[self.architecture]
        said = {name: getattr(self, name) for name in NetNumbers._fields if getattr(self, name) is not None}
        if "base_width" in said and self.penultimate is None and self.family == "convnext":
            said["penultimate"] = 8 * said["base_width"]  # its hidden layer is as wide as the last stage
        return published._replace(**said)


@dataclass(frozen=True)
class LossSettings:
    """The joint loss over presence and severity."""

    severity_factor: float | None = option(
        None, "λ, the share of severity in the loss; .1, .9, .5 for presence, severity, both.", min=0.0, max=1.0
    )
    presence_smoothing: float = option(0.1, "Label smoothing of presence.", min=0.0, max=0.5)
    severity_smoothing: float = option(0.1, "Label smoothing between neighbouring severities.", min=0.0, max=0.9)

    def __post_init__(self) -> None:
        _check_limits(self)

    def factor(self, task: Task) -> float:
        """λ for a task."""
        return SEVERITY_FACTOR[task] if self.severity_factor is None else self.severity_factor


@dataclass(frozen=True)
class Training:
    """How a network is fitted."""

    epochs: int = option(40, "Passes over the training scans.", min=1)
    batch_size: int = option(2, "Scans in a batch.", min=1)
    accumulate: int = option(1, "Batches summed before a step of the optimiser.", min=1)
    learning_rate: float = option(1e-4, "Highest learning rate of the 1cycle schedule.", min=0.0)
    weight_decay: float = option(0.01, "Decoupled weight decay.", min=0.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Precision of the forward pass; auto is bf16 or fp16 on a GPU and fp32 on a CPU."
    )
    reflection: bool = option(True, "Reflect half of the training scans left to right.")
    validation_fraction: float | None = option(
        None,
        "Hold this share of the training scans out to choose the epoch by; if not said, the study's own validation "
        "scans, or .2 where it has none.",
        min=0.01,
        max=0.9,
    )
    weights: str = option("none", "Weights to start from: none, kinetics (published; downloaded once), or a file.")
    seed: int = option(0, "Seed of everything that is drawn.", min=0)

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.learning_rate == 0:
            raise SettingError("--learning-rate 0 learns nothing; the published rate is 1e-4")


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run, and the task that its model is kept for."""

    task: Task = "both"
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing())
    net: NetSettings = field(default_factory=lambda: NetSettings())
    loss: LossSettings = field(default_factory=lambda: LossSettings())
    training: Training = field(default_factory=lambda: Training())
    reading: Reading = field(default_factory=lambda: Reading())

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.training.weights == "kinetics" and self.net.family != "resnet":
            raise SettingError(
                f"Kinetics weights are for ResNets, and --architecture is {self.net.architecture}; say --weights none"
            )
        if self.training.weights == "kinetics" and self.net.numbers.base_width != 64:
            raise SettingError(
                f"Kinetics weights fit --base-width 64, not {self.net.base_width}; say --weights none, or leave the width"
            )

        idle = {"presence": 1.0, "severity": 0.0}
        if any(self.task in (task, "both") and self.severity_factor == factor for task, factor in idle.items()):
            raise SettingError(
                f"--severity-factor {self.severity_factor:g} learns nothing of what --task {self.task} keeps; "
                "choose a number between 0 and 1"
            )

    @property
    def severity_factor(self) -> float:
        """λ of the joint loss."""
        return self.loss.factor(self.task)


@dataclass(frozen=True)
class Inference:
    """How answers are made."""

    tta: bool = option(True, "Average over the scan and its left-right reflection.")
    threshold: float = option(0.5, "COVID-19 is called at this probability or above.", min=0.0, max=1.0)

    def __post_init__(self) -> None:
        _check_limits(self)


@dataclass(frozen=True)
class Machine:
    """Where the work is done."""

    device: str = option("auto", "auto, cpu, cuda, or cuda:1.")
    workers: int | None = option(
        None, "Processes that read scans; if not said, one a core, and one beside a network on a CPU.", min=1, max=256
    )
    timeout: float = option(600.0, "Seconds after which a scan is given up.", min=1.0)

    def __post_init__(self) -> None:
        _check_limits(self)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise SettingError(f"--device {self.device!r} is not one of auto, cpu, cuda, cuda:1")

    @property
    def processes(self) -> int:
        """How many worker processes: as asked for, else one for each core that this process may use."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(cores, 32))


@dataclass(frozen=True)
class Messages:
    """What is said."""

    quiet: bool = option(False, "Say nothing but errors and results.", flag="--quiet")
    debug: bool = option(False, "Show where in the code an error came from.", flag="--debug")


def check_task(task: str) -> Task:
    """The task, if it is one."""
    if task not in TASKS:
        raise SettingError(f"--task {task!r} is not one of {', '.join(TASKS)}")
    return cast(Task, task)


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings group as plain values, for a worker process. A reading that is written is :func:`recorded` instead."""
    return asdict(settings)


def recorded(settings: Any) -> dict[str, Any]:
    """A settings group, and the groups in it, as plain values that may be written: a series' UID as its hash."""
    return asdict(settings, dict_factory=_without_uid)


def _without_uid(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: hide_uid(value) if name == "series" else value for name, value in values}


def hide_uid(series: str) -> str:
    """``--series`` as it may be written: a UID stands in a patient's headers, so a hash of it. Same UID, same hash."""
    return f"sha256:{hashlib.sha256(series.encode()).hexdigest()[:16]}" if re.fullmatch(UID, series) else series


def from_dict(group: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """A settings group back from JSON; ``source`` names the file in the error.

    A setting that the file's version did not know yet has its default, which means what was done before.
    """
    known = {f.name for f in fields(group)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or not set(values) <= known:
        differing = sorted(set(values) - known) if isinstance(values, Mapping) else [type(values).__name__]
        raise SettingError(
            f"{source}: its {group.__name__} settings differ from this version's in {', '.join(differing)}; "
            "use the version of cov3d that wrote it"
        )
    try:
        return group(**values)
    except TypeError as error:
        raise SettingError(f"{source}: {group.__name__} settings are damaged: {error}") from error


def _check_limits(settings: Any) -> None:
    """Raise a SettingError for a value of another type than its field's, not among its choices, or out of its range."""
    hints = get_type_hints(type(settings))
    for f in fields(settings):
        name, value = f"--{f.name.replace('_', '-')}", getattr(settings, f.name)
        allowed = get_args(hints[f.name]) or (hints[f.name],)
        if value is None and NoneType in allowed:
            continue
        if get_origin(hints[f.name]) is Literal:
            if value not in allowed:
                raise SettingError(f"{name} {value!r} is not one of {', '.join(allowed)}")
            continue
        if type(value) not in allowed and not (type(value) is int and float in allowed):
            wanted = " or ".join(kind.__name__ for kind in allowed if kind is not NoneType)
            raise SettingError(f"{name} {value!r} is not of the kind {wanted}")
        low, high = f.metadata.get("min"), f.metadata.get("max")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            wanted = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise SettingError(f"{name} {value} is out of range; expected {wanted}")
