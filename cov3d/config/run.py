"""All settings of a run, and the combinations that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field

from cov3d.config.augmentation import Augmentation
from cov3d.config.fields import check_limits, option
from cov3d.config.loss import LossKind, LossSettings
from cov3d.config.net import LEAST_SIDE, NetSettings
from cov3d.config.pictures import FLAT
from cov3d.config.reading import Preprocessing, Reading
from cov3d.config.training import Training
from cov3d.errors import SettingError
from cov3d.labels import TASKS, Task

EMA = {"presence": 0.995, "severity": 0.99, "both": 0.99}  # of ConvNeXts, as published
IDLE = {"presence": 1.0, "severity": 0.0}  # the λ by which a task counts nothing


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run."""

    task: Task = option("both", "What the model is kept for; it gives both answers.")
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    net: NetSettings = field(default_factory=NetSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        check_limits(self)
        self.augmentation.to_cache(self.preprocessing)  # refuses what cannot be
        self.augmentation.check_used(self.net.family)
        _check_sides(self)
        _check_kinetics(self)
        _check_inflation(self)
        _check_learnt(self)

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


def check_task(task: str) -> Task:
    """The task, if it is one."""
    if task not in TASKS:
        raise SettingError(f"--task {task!r} is not one of {', '.join(TASKS)}")
    return task


def _check_sides(run: RunSettings) -> None:
    """Raise a SettingError for a volume that a ConvNeXt's stages would shrink to nothing."""
    if run.net.family == "convnext" and min(run.preprocessing.shape) < LEAST_SIDE:
        sides = "×".join(map(str, run.preprocessing.shape))
        raise SettingError(
            f"a ConvNeXt needs sides of at least {LEAST_SIDE} voxels, and these are {sides}; raise --width or --depth"
        )


def _check_kinetics(run: RunSettings) -> None:
    """Raise a SettingError where Kinetics weights do not fit."""
    if run.training.weights != "kinetics":
        return
    if run.net.family != "resnet":
        raise SettingError(
            f"Kinetics weights are for ResNets, and --architecture is {run.net.architecture}; say --weights none"
        )
    if run.net.numbers.base_width != 64:
        raise SettingError(
            f"Kinetics weights fit --base-width 64, not {run.net.base_width}; say --weights none, or leave the width"
        )


def _check_inflation(run: RunSettings) -> None:
    """Raise a SettingError where there is nothing to inflate, or nothing that can be."""
    training, architecture = run.training, run.net.architecture
    if training.inflate == "none":
        if training.inflate_norm != "l2":
            raise SettingError(f"--inflate-norm {training.inflate_norm} needs --inflate full, 1g or 2g; say which")
        return
    if architecture not in FLAT:
        raise SettingError(f"--inflate is for ConvNeXts and resnet18, not {architecture}; leave it out")
    if training.weights in ("none", "kinetics"):
        raise SettingError(
            f"--inflate is for a file of 2D weights, and --weights is {training.weights}; name the file, or say "
            "--inflate none"
        )


def _check_learnt(run: RunSettings) -> None:
    """Raise a SettingError for a λ by which nothing of the task is learnt, or settings of a loss that counts nothing."""
    factor = run.severity_factor
    if any(run.task in (task, "both") and factor == idle for task, idle in IDLE.items()):
        raise SettingError(
            f"--severity-factor {factor:g} learns nothing of what --task {run.task} keeps; choose a number between 0 and 1"
        )
    for task, said in run.loss.said.items():
        if said and factor == IDLE[task]:
            raise SettingError(
                f"{said} says nothing, since --severity-factor {factor:g} leaves {task} out; leave one out"
            )
