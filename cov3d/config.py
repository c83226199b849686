"""Every setting: its name, type, default, help and limits, and the combinations that cannot be.

A group of settings is a frozen dataclass. :mod:`cov3d.options` turns its fields into command-line options; the whole
group travels down to the functions it steers, into the run's ``config.json`` and into the model file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from cov3d.errors import SettingError
from cov3d.labels import TASKS

Task = Literal["presence", "severity", "both"]
Architecture = Literal[
    "resnet18", "mc3-18", "r2plus1d-18", "convnext-micro", "convnext-tiny", "convnext-small", "convnext-base"
]
Family = Literal["resnet", "convnext"]
LossKind = Literal["joint", "balanced-ce"]

# A SeriesInstanceUID, and what is written in its place.
UID, HIDDEN_UID = r"[0-9.]{1,64}", r"sha256:[0-9a-f]{16}"

LEAST_SIDE = 32  # voxels, of which a ConvNeXt's last stage makes one
EMA = {"presence": 0.995, "severity": 0.99, "both": 0.99}  # of ConvNeXts, as published
# λ of the loss: how much severity counts, by what the model is kept for.
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
    """The loss over presence and severity."""

    loss: Literal["auto", "joint", "balanced-ce"] = option(
        "auto", "Cov3d's joint loss, or balanced cross entropies; auto is joint for ResNets, balanced-ce for ConvNeXts."
    )
    severity_factor: float | None = option(
        None, "λ, the share of severity in the loss; .1, .9, .5 for presence, severity, both.", min=0.0, max=1.0
    )
    class_weights: Literal["inverse", "none"] = option("inverse", "Weight classes by how seldom they are.")
    presence_smoothing: float | None = option(
        None, "Label smoothing of presence; .1 in the joint loss, else 0.", min=0.0, max=0.5
    )
    severity_smoothing: float | None = option(
        None, "Label smoothing between neighbouring severities; .1 in the joint loss, else 0.", min=0.0, max=0.9
    )
    severity_loss: Literal["ce", "focal", "emd"] = option(
        "ce",
        "What a severity costs: cross entropy, focal loss, or the earth mover's distance over the ordered classes.",
    )
    focal_gamma: float | None = option(None, "γ of --severity-loss focal; 2 if not said.", min=0.0, max=10.0)

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.focal_gamma is not None and self.severity_loss != "focal":
            raise SettingError(f"--focal-gamma is for --severity-loss focal, not {self.severity_loss}; leave one out")

    def factor(self, task: Task) -> float:
        """λ for a task."""
        return SEVERITY_FACTOR[task] if self.severity_factor is None else self.severity_factor

    def smoothing(self, kind: LossKind) -> tuple[float, float]:
        """Label smoothing of presence and of severity."""
        usual = 0.1 if kind == "joint" else 0.0
        presence, severity = self.presence_smoothing, self.severity_smoothing
        return usual if presence is None else presence, usual if severity is None else severity

    @property
    def gamma(self) -> float:
        """γ of the focal loss."""
        return 2.0 if self.focal_gamma is None else self.focal_gamma


@dataclass(frozen=True)
class Training:
    """How a network is fitted."""

    epochs: int = option(40, "Passes over the training scans.", min=1)
    batch_size: int = option(2, "Scans in a batch.", min=1)
    accumulate: int = option(1, "Batches summed before a step of the optimiser.", min=1)
    learning_rate: float = option(1e-4, "The highest learning rate.", min=0.0)
    schedule: Literal["1cycle", "constant", "cosine"] = option(
        "1cycle", "How the learning rate goes: up and down again, as it is, or down along a cosine."
    )
    optimizer: Literal["adamw", "adam"] = option(
        "adamw", "Adam with decoupled weight decay, or with it in the gradient."
    )
    weight_decay: float = option(0.01, "Weight decay.", min=0.0)
    clip: float | None = option(None, "Longest gradient; longer ones are shortened.", min=0.0)
    ema: float | None = option(
        None,
        "Decay of the weights' moving average, which is scored and kept; if not said, .99 (severity) or .995 (presence) "
        "for ConvNeXts; 0 for none.",
        min=0.0,
        max=0.9999,
    )
    checkpoint_activations: bool = option(
        False,
        "Compute activations again instead of keeping them: less memory, more time.",
        flag="--checkpoint-activations",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Precision of the forward pass; auto is bf16 or fp16 on a GPU and fp32 on a CPU."
    )
    validation_fraction: float | None = option(
        None,
        "Hold this share of the training scans out to choose the epoch by; if not said, the study's own validation "
        "scans, or .2 where it has none.",
        min=0.01,
        max=0.9,
    )
    weights: str = option("none", "Weights to start from: none, kinetics (published; downloaded once), or a file.")
    inflate: Literal["none", "full", "1g", "2g"] = option(
        "none",
        "Give a 2D ConvNeXt's kernels in --weights FILE a third axis: constant, Gaussian, or two crossed Gaussians.",
    )
    inflate_norm: Literal["l2", "sum"] = option(
        "l2", "What an inflated kernel keeps: its Euclidean norm (published), or its sum (as I3D)."
    )
    keep: Literal["auto", "best", "last"] = option(
        "auto", "Which epoch is kept: the best on validation scans (train), or the last (cross-validate, --all-data)."
    )
    seed: int = option(0, "Seed of everything that is drawn.", min=0)

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.learning_rate == 0:
            raise SettingError("--learning-rate 0 learns nothing; the published rate is 1e-4")
        if self.clip == 0:
            raise SettingError("--clip 0 learns nothing; leave it out, or take the published 5")


class AugmentationNumbers(NamedTuple):
    """What an augmentation does: a probability for each step, and how far the steps go."""

    random_crop: float = 0.0
    flip_depth: float = 0.0
    flip_height: float = 0.0
    flip_width: float = 0.0
    rotate: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    turn: float = 0.0
    elastic: float = 0.0
    rotate_degrees: float = 30.0
    elastic_voxels: float | None = None

    @property
    def chances(self) -> tuple[float, ...]:
        """The nine probabilities."""
        return self[:9]


# As published: Turnbull (arXiv 2207.12218) for ResNets, Kienzle et al. (arXiv 2206.15073) for ConvNeXts, whose quarter
# turns belong to some submissions only.
PUBLISHED_AUGMENTATION: dict[Family, AugmentationNumbers] = {
    "resnet": AugmentationNumbers(flip_width=0.5),
    "convnext": AugmentationNumbers(
        random_crop=0.5,
        flip_depth=0.25,
        flip_height=0.25,
        flip_width=0.25,
        rotate=0.2,
        blur=0.2,
        noise=0.2,
        elastic=0.5,
    ),
}


@dataclass(frozen=True)
class Augmentation:
    """How training scans are varied. A probability that is not said is the one published for the network's family."""

    random_crop: float | None = option(None, "Probability of a crop, with --crop-from.", min=0.0, max=1.0)
    flip_depth: float | None = option(None, "Probability of a flip head to feet.", min=0.0, max=1.0)
    flip_height: float | None = option(None, "Probability of a flip front to back.", min=0.0, max=1.0)
    flip_width: float | None = option(None, "Probability of a flip right to left.", min=0.0, max=1.0)
    rotate: float | None = option(None, "Probability of a rotation about the body's long axis.", min=0.0, max=1.0)
    blur: float | None = option(None, "Probability of a Gaussian blur of .6 to .8 voxels.", min=0.0, max=1.0)
    noise: float | None = option(None, "Probability of noise of .9 to 3 % of the grey scale.", min=0.0, max=1.0)
    turn: float | None = option(None, "Probability of quarter turns about each axis.", min=0.0, max=1.0)
    elastic: float | None = option(None, "Probability of an elastic deformation.", min=0.0, max=1.0)
    rotate_degrees: float = option(30.0, "Rotations go this far to either side.", min=0.0, max=180.0)
    elastic_voxels: float | None = option(
        None,
        "Elastic deformations move voxels so far (rms); as published, .06 to .44 at width 224, if not said.",
        min=0.0,
    )
    crop_from: int | None = option(
        None, "Cache training scans at this width, and crop --width of it or shrink the whole.", min=16, max=2048
    )

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.random_crop and self.crop_from is None:
            raise SettingError(
                f"--random-crop {self.random_crop:g} has nothing to crop from; say --crop-from, a width above --width"
            )

    def numbers(self, family: Family) -> AugmentationNumbers:
        """The numbers for a family of networks: those that were said, and the published ones for the others."""
        said = {name: getattr(self, name) for name in AugmentationNumbers._fields if getattr(self, name) is not None}
        if self.crop_from is None:
            said["random_crop"] = 0.0
        return PUBLISHED_AUGMENTATION[family]._replace(**said)

    def to_cache(self, preprocessing: Preprocessing) -> Preprocessing:
        """How training scans are cached: at ``crop_from`` if there is one, depth in proportion.

        Raises:
            SettingError: ``crop_from`` is less than the network's width.
        """
        if self.crop_from is None:
            return preprocessing
        depth, _, width = preprocessing.shape
        if self.crop_from <= width:
            raise SettingError(
                f"--crop-from {self.crop_from} is not above --width {width}, which is cropped from it; "
                f"choose {round(width * 8 / 7)}, as published 256 for 224, or leave it"
            )
        return replace(preprocessing, width=self.crop_from, depth=round(depth * self.crop_from / width))


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run, and the task that its model is kept for."""

    task: Task = "both"
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing())
    net: NetSettings = field(default_factory=lambda: NetSettings())
    loss: LossSettings = field(default_factory=lambda: LossSettings())
    training: Training = field(default_factory=lambda: Training())
    augmentation: Augmentation = field(default_factory=lambda: Augmentation())
    reading: Reading = field(default_factory=lambda: Reading())

    def __post_init__(self) -> None:
        check_task(self.task)
        self.augmentation.to_cache(self.preprocessing)  # refuses what cannot be
        if self.net.family == "convnext" and min(self.preprocessing.shape) < LEAST_SIDE:
            sides = "×".join(map(str, self.preprocessing.shape))
            raise SettingError(
                f"a ConvNeXt needs sides of at least {LEAST_SIDE} voxels, and these are {sides}; raise --width or --depth"
            )
        if self.training.weights == "kinetics" and self.net.family != "resnet":
            raise SettingError(
                f"Kinetics weights are for ResNets, and --architecture is {self.net.architecture}; say --weights none"
            )
        if self.training.weights == "kinetics" and self.net.numbers.base_width != 64:
            raise SettingError(
                f"Kinetics weights fit --base-width 64, not {self.net.base_width}; say --weights none, or leave the width"
            )
        if self.training.inflate != "none" and self.net.family != "convnext":
            raise SettingError(
                f"--inflate is for ConvNeXts, and --architecture is {self.net.architecture}; leave it out"
            )
        if self.training.inflate != "none" and self.training.weights in ("none", "kinetics"):
            raise SettingError(
                f"--inflate is for a file of 2D ConvNeXt weights, and --weights is {self.training.weights}; name the file"
            )
        if self.training.inflate == "none" and self.training.inflate_norm != "l2":
            raise SettingError(f"--inflate-norm {self.training.inflate_norm} needs --inflate full, 1g or 2g; say which")

        idle = {"presence": 1.0, "severity": 0.0}
        if any(self.task in (task, "both") and self.severity_factor == factor for task, factor in idle.items()):
            raise SettingError(
                f"--severity-factor {self.severity_factor:g} learns nothing of what --task {self.task} keeps; "
                "choose a number between 0 and 1"
            )

    @property
    def severity_factor(self) -> float:
        """λ of the loss."""
        return self.loss.factor(self.task)

    @property
    def loss_kind(self) -> LossKind:
        """Which loss."""
        if self.loss.loss != "auto":
            return self.loss.loss
        return "joint" if self.net.family == "resnet" else "balanced-ce"

    @property
    def ema(self) -> float:
        """The decay of the weights' moving average; 0 for none."""
        if self.training.ema is not None:
            return self.training.ema
        return EMA[self.task] if self.net.family == "convnext" else 0.0


@dataclass(frozen=True)
class Inference:
    """How answers are made."""

    tta: bool = option(True, "Average over the scan and its left-right reflection.")
    threshold: float = option(0.5, "COVID-19 is called at this probability or above.", min=0.0, max=1.0)
    allow_missing: bool = option(
        False,
        "Answer without folds of a cross-validation, or models, that are missing or unreadable.",
        flag="--allow-missing",
    )

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
