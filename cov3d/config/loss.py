"""The loss over presence and severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cov3d.config.fields import check_limits, option
from cov3d.errors import SettingError
from cov3d.labels import Task

LossKind = Literal["joint", "balanced-ce"]

# λ of the loss: how much severity counts, by what the model is kept for.
SEVERITY_FACTOR = {"presence": 0.1, "severity": 0.9, "both": 0.5}


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
        check_limits(self)
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
    def said(self) -> dict[str, str]:
        """An option that was given about each task's loss alone; an empty text where there is none."""
        smoothing = "--severity-smoothing" if self.severity_smoothing is not None else ""
        return {
            "presence": "--presence-smoothing" if self.presence_smoothing is not None else "",
            "severity": "--severity-loss" if self.severity_loss != "ce" else smoothing,
        }

    @property
    def gamma(self) -> float:
        """γ of the focal loss."""
        return 2.0 if self.focal_gamma is None else self.focal_gamma
