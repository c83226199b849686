"""Several models, several views, one answer a scan: the mean of their probabilities, and the lesions that they draw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cov3d import labels
from cov3d.config import Inference, Preprocessing
from cov3d.errors import ModelError
from cov3d.nets.build import CLASSES, MASKS
from cov3d.nets.model import Model
from cov3d.predictions import COLUMNS, LESIONS, Prediction
from cov3d.results.lesions import NO_LUNGS, NOT_A_NUMBER, Lesions, find_lesions
from cov3d.results.views import forward, views_of
from cov3d.scans.frame import write_mask
from cov3d.scans.read import scan_name
from cov3d.scans.tensors import Tensors
from cov3d.shown import blind_spots, was_shown

Scans = dict[Preprocessing, torch.Tensor]  # one scan uint8 (1, D, H, W), in every way in which a model wants it


@dataclass(frozen=True)
class Ensemble:
    """Models whose probabilities are averaged: presence over those kept for presence, severity over those for severity.

    Lesions are the mean over all that draw masks.
    """

    models: Sequence[Model]
    inference: Inference

    @property
    def preprocessings(self) -> list[Preprocessing]:
        """The different ways in which its models want a scan."""
        return list(dict.fromkeys(model.preprocessing for model in self.models))

    @property
    def classifiers(self) -> list[int]:
        """Which models answer with classes."""
        return [k for k, model in enumerate(self.models) if CLASSES in model.heads]

    @property
    def segmenters(self) -> list[Model]:
        """The models that draw masks."""
        return [model for model in self.models if MASKS in model.heads]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table of its answers."""
        return (*COLUMNS, *LESIONS) if self.segmenters else COLUMNS

    def kept_for(self, task: str) -> list[int]:
        """Which models answer a task: those kept for it, or all if there are none; of these, those that learnt it."""
        chosen = [k for k in self.classifiers if self.models[k].task in (task, "both")]
        chosen = chosen or self.classifiers
        return [k for k in chosen if was_shown(self.models[k].training, task)] or chosen

    @property
    def blind_spots(self) -> list[str]:
        """Answers that say nothing, or something else, since no model that gives them was shown what to answer."""
        return blind_spots(
            *([self.models[k].training for k in self.kept_for(task)] for task in ("presence", "severity"))
        )

    def answer(self, path: Path, tensors: Tensors, mask_file: Path | None = None) -> Prediction:
        """The row of one scan; its mask is written first, if there is a place for it."""
        begin = time.monotonic()
        warnings = [*tensors.warnings, *self.blind_spots]
        about: dict[str, Any] = {"scan": scan_name(path), "path": path.as_posix()}
        if tensors.error:
            return Prediction(**about, warning="; ".join(warnings), error=tensors.error)
        scans = {settings: torch.from_numpy(a) for settings, a in zip(self.preprocessings, tensors.arrays, strict=True)}
        try:
            answers = self._classes(scans) if self.classifiers else {}
            if self.segmenters:
                lesions = self._lesions(scans, tensors, mask_file)
                answers |= {"lesion_percent": lesions.percent, "lesion_ml": lesions.ml}
                warnings += [] if lesions.percent is not None else [NO_LUNGS]
        except ModelError as error:
            return Prediction(**about, warning="; ".join(warnings), error=str(error))
        return Prediction(
            **about,
            **answers,
            warning="; ".join(warnings),
            threshold=self.inference.threshold,
            models=len(self.models),
            views=1 + self.inference.tta,
            seconds=tensors.seconds + time.monotonic() - begin,
        )

    def _classes(self, scans: Scans) -> dict[str, Any]:
        covid, severity = self.probabilities(scans)
        if not (covid.isfinite().all() and severity.isfinite().all()):
            raise ModelError(NOT_A_NUMBER)
        return {"covid": float(covid), "severity": tuple(severity.tolist())}

    def _lesions(self, scans: Scans, tensors: Tensors, mask_file: Path | None) -> Lesions:
        frames = dict(zip(self.preprocessings, tensors.frames, strict=True))
        lesions = find_lesions(self.segmenters, scans, frames, self.inference.tta)
        if mask_file is not None:
            write_mask(mask_file, lesions.mask, next(iter(frames.values())))
        return lesions

    @torch.inference_mode()
    def probabilities(self, scans: Scans) -> tuple[torch.Tensor, torch.Tensor]:
        """Covid ``()`` and severity ``(4,)`` of one scan, means over views and models."""
        answers = {}
        for k in self.classifiers:
            model = self.models[k]
            views = views_of(scans[model.preprocessing], model, self.inference.tta)
            logits = forward(model.classes, views).float().cpu()  # (V, 1, 6)
            if model.training.get("loss") == "balanced-ce":
                logits[..., -1] = -torch.inf  # non-covid among the severities, which this loss does not learn
            covid, severity = labels.mean_over_views(logits)
            answers[k] = covid[0], severity[0]
        covid = torch.stack([answers[k][0] for k in self.kept_for("presence")]).mean(0)
        severity = torch.stack([answers[k][1] for k in self.kept_for("severity")]).mean(0)
        return covid, severity

    def provenance(self) -> dict[str, Any]:
        """What the answers come from: models by fingerprint, and settings."""
        return {
            "models": [_provenance(model) for model in self.models],
            "tta": self.inference.tta,
            "threshold": self.inference.threshold,
        }


def _provenance(model: Model) -> dict[str, Any]:
    """Which model it is, and the study of which it has learnt every labelled scan."""
    study = model.training.get("study_fingerprint") if model.training.get("all_data") else None
    name = model.source.name if model.source else ""
    return {
        "file": name,
        "sha256": model.sha256,
        "task": model.task,
        "heads": list(model.heads),
        "learnt_all_of": study,
    }
