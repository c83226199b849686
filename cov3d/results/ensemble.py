"""Several models, several views, one answer a scan: the mean of their probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cov3d import labels
from cov3d.config import Inference, Preprocessing
from cov3d.nets.inputs import as_input, reflect
from cov3d.nets.model import Model
from cov3d.predictions import Prediction
from cov3d.scans.read import scan_name
from cov3d.scans.tensors import Tensors

SMALL = 64 * 128 * 128  # voxels


@dataclass(frozen=True)
class Ensemble:
    """Models whose probabilities are averaged: presence over those kept for presence, severity over those for severity."""

    models: Sequence[Model]
    inference: Inference

    @property
    def preprocessings(self) -> list[Preprocessing]:
        """The different ways in which its models want a scan."""
        return list(dict.fromkeys(model.preprocessing for model in self.models))

    def kept_for(self, task: str) -> list[int]:
        """Which models answer a task: those kept for it, or all if there are none; of these, those that learnt it."""
        chosen = [k for k, model in enumerate(self.models) if model.task in (task, "both")]
        chosen = chosen or list(range(len(self.models)))
        return [k for k in chosen if _learnt(self.models[k], task)] or chosen

    @property
    def blind_spots(self) -> list[str]:
        """Answers that say nothing, since no model that gives them was shown what to answer."""
        return [
            f"answers about {task} say nothing: no model that gives them learnt it"
            for task in ("presence", "severity")
            if not any(_learnt(self.models[k], task) for k in self.kept_for(task))
        ]

    def answer(self, path: Path, tensors: Tensors) -> Prediction:
        """The row of one scan."""
        begin = time.monotonic()
        warnings = [*tensors.warnings, *self.blind_spots]
        about: dict[str, Any] = {"scan": scan_name(path), "path": path.as_posix(), "warning": "; ".join(warnings)}
        if tensors.error:
            return Prediction(**about, error=tensors.error)
        covid, severity = self.probabilities(tensors)
        if not (covid.isfinite().all() and severity.isfinite().all()):
            return Prediction(**about, error="the model's answer is not a number; is the model damaged?")
        return Prediction(
            **about,
            covid=float(covid),
            severity=tuple(severity.tolist()),
            threshold=self.inference.threshold,
            models=len(self.models),
            views=1 + self.inference.tta,
            seconds=tensors.seconds + time.monotonic() - begin,
        )

    @torch.inference_mode()
    def probabilities(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Covid ``()`` and severity ``(4,)`` of one scan, means over views and models."""
        inputs = {
            settings: torch.from_numpy(a) for settings, a in zip(self.preprocessings, tensors.arrays, strict=True)
        }
        answers = []
        for model in self.models:
            device = next(model.net.parameters()).device
            scan = as_input(inputs[model.preprocessing][None].to(device))  # (1, 1, D, H, W)
            logits = forward(model.net, self.views(scan)).float().cpu()  # (V, 1, 6)
            if model.training.get("loss") == "balanced-ce":
                logits[..., -1] = -torch.inf  # non-covid among the severities, which this loss does not learn
            covid, severity = labels.mean_over_views(logits)
            answers.append((covid[0], severity[0]))
        covid = torch.stack([answers[k][0] for k in self.kept_for("presence")]).mean(0)
        severity = torch.stack([answers[k][1] for k in self.kept_for("severity")]).mean(0)
        return covid, severity

    def views(self, scan: torch.Tensor) -> list[torch.Tensor]:
        """The scan, and its reflection if views are averaged."""
        return [scan, reflect(scan)] if self.inference.tta else [scan]

    def provenance(self) -> dict[str, Any]:
        """What the answers come from: models by fingerprint, and settings."""
        return {
            "models": [
                {"file": m.source.name if m.source else "", "sha256": m.sha256, "task": m.task} for m in self.models
            ],
            "tta": self.inference.tta,
            "threshold": self.inference.threshold,
        }


def forward(net: torch.nn.Module, views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits ``(V, 1, 6)`` of views ``(1, 1, D, H, W)``: small ones as one batch, large ones one by one for less memory.

    torch gives single small volumes on a CPU to its slow convolution: a batch of two was ten times faster.
    """
    if views[0].numel() <= SMALL:
        return net(torch.cat(list(views)))[:, None]
    return torch.stack([net(view) for view in views])


def _learnt(model: Model, task: str) -> bool:
    """Whether a model was shown two classes of a task, and its loss counted them; a model that does not say, was."""
    counts, factor = model.training.get("train_counts"), model.training.get("severity_factor")
    if counts is None:
        return True
    classes, ignored = (labels.PRESENCE, 1.0) if task == "presence" else (labels.SEVERITY, 0.0)
    return sum(counts.get(name, 0) > 0 for name in classes) > 1 and factor != ignored
