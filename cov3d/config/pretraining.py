"""Where lesion masks come from in pretraining, and what they weigh."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from cov3d.config.fields import check_limits, option
from cov3d.config.loss import LossSettings
from cov3d.config.pictures import PictureSettings
from cov3d.errors import SettingError

Method = Literal["imagenet", "segmentation", "segmia", "multitask"]
# Which settings say something in which method.
USED: dict[str, tuple[str, ...]] = {
    "imagenet": (),
    "segmentation": ("mask_labels",),
    "segmia": ("teacher", "threshold", "soft"),
    "multitask": ("teacher", "threshold", "soft", "weights_of_tasks"),
}
# Which methods heed a group of settings; any other group is of scans.
HEEDED: dict[type, tuple[str, ...]] = {PictureSettings: ("imagenet",), LossSettings: ("multitask",)}
SCANS = ("segmentation", "segmia", "multitask")


@dataclass(frozen=True)
class Pretraining:
    """Where lesion masks come from."""

    teacher: str | None = option(None, "The segmentation model that draws the masks: its file, or its run's folder.")
    threshold: float = option(0.5, "A teacher's mask is lesion above this probability.", min=0.01, max=0.99)
    soft: bool = option(False, "Learn a teacher's probabilities instead of its masks.", flag="--soft")
    mask_labels: str = option("", "Values of masks that are lesion, as 1,3; 0 and 1 if not said.")
    weights_of_tasks: tuple[float, float] = option((1.0, 1.0), "What severity and masks weigh in the loss.")

    def __post_init__(self) -> None:
        check_limits(self)
        parse_labels(self.mask_labels)
        if self.soft and self.threshold != 0.5:
            raise SettingError("--soft learns probabilities as they are, so --threshold says nothing; leave one out")
        if not all(0 < weight < float("inf") for weight in self.weights_of_tasks):
            raise SettingError("--weights-of-tasks takes two numbers above 0; to learn masks alone say --method segmia")

    def check_used(self, method: Method) -> None:
        """Raise a SettingError for what a method lacks, or what says nothing in it."""
        if "teacher" in USED[method] and not self.teacher:
            raise SettingError(
                f"--method {method} needs --teacher, a model that draws masks; 'cov3d pretrain --method segmentation' makes one"
            )
        for f in fields(self):
            if f.name not in USED[method] and getattr(self, f.name) != f.default:
                raise SettingError(f"--{f.name.replace('_', '-')} says nothing in --method {method}; leave it out")


def parse_labels(text: str) -> tuple[int, ...]:
    """The values that are lesion, from ``1,3``: sorted, each once; none if nothing is said.

    Raises:
        SettingError: they are no positive whole numbers.
    """
    if not text.strip():
        return ()
    if not re.fullmatch(r"\s*[0-9]{1,6}\s*(,\s*[0-9]{1,6}\s*)*", text, re.ASCII):
        raise SettingError(f"--mask-labels {text[:100]!r} is not whole numbers with commas between them, as 1,3")
    labels = {int(part) for part in text.split(",")}
    if 0 in labels:
        raise SettingError(f"--mask-labels {text[:100]!r} names 0, which is background; leave it out")
    return tuple(sorted(labels))


def check_said(method: Method, *groups: Any) -> None:
    """Raise a SettingError for a setting that the method does not heed, such as one of pictures where scans are learnt."""
    for group in groups:
        if method in HEEDED.get(type(group), SCANS):
            continue
        for f in fields(group):
            said, usual = getattr(group, f.name), getattr(type(group)(), f.name)
            if said != usual:
                raise SettingError(f"--{f.name.replace('_', '-')} says nothing in --method {method}; leave it out")
