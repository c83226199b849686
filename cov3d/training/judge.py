"""What an epoch is worth: the whole validation set's answers, scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cov3d import labels
from cov3d.labels import Task
from cov3d.metrics import score_presence, score_severity
from cov3d.predictions import Prediction, write_predictions
from cov3d.runs import PREDICTIONS
from cov3d.scans.study import Row
from cov3d.shown import Summary, blind_spots
from cov3d.training.scorer import Measure, Scorer, Scores

Rank = tuple[float, ...]


class Judge(Scorer):
    """Says which epoch is the best; ``kept_for`` is what one is kept for, each in a model file of its name."""

    kept_for: tuple[str, ...]

    @abstractmethod
    def rank(self, kept: str, scores: Scores) -> Rank:
        """How good an epoch is for what a model is kept for; more is better."""

    @abstractmethod
    def evidence(self) -> Any:
        """What was seen, in tensors, to be written if the epoch is kept."""

    @abstractmethod
    def write(self, folder: Path, evidence: dict[str, Any]) -> None:
        """Write what the kept epochs answered into the run's folder, by what they are kept for."""


class ClassJudge(Judge):
    """Presence and severity of scans, in the order in which the loader gives them.

    An epoch is better for a task by macro F1, and among equals (on few scans there are many) by the log loss. ``shown`` is the
    training's summary: what its answers do not say is said beside them.
    """

    noted_of_none = (torch.empty(0, labels.LOGITS),)

    def __init__(self, rows: Sequence[Row], task: Task, shown: Summary):
        self.rows = rows
        self.warning = "; ".join(blind_spots([shown], [shown]))
        self.kept_for = ("presence", "severity") if task == "both" else (task,)
        self.measures = {task: Measure("macro F1", "macro_f1", f"{task}_f1") for task in ("presence", "severity")}
        self.presence = np.array([row.presence for row in rows], int)
        self.severity = np.array([row.severity for row in rows], int)
        self.begin()

    def noted(self, answers: Any, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (answers.float(),)

    def evidence(self) -> Tensor:
        """Logits ``(N, 6)``."""
        return self.seen()[0]

    def scores(self) -> Scores:
        covid, severity = (answer.numpy() for answer in labels.probabilities(self.evidence()))
        return {
            "presence": score_presence(self.presence, covid),
            "severity": score_severity(self.severity, severity),
        }

    def columns(self, scores: Scores) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for task, found in scores.items():
            row |= {f"{task}_f1": found["macro_f1"], f"{task}_accuracy": found["accuracy"]}
            row[f"{task}_log_loss"] = found["log_loss"]
            row |= {f"{task}_f1_{name}": found["f1"].get(name) for name in found["classes"]}
        return row

    def rank(self, kept: str, scores: Scores) -> Rank:
        found = scores[kept]
        return (-1.0, 0.0) if found["macro_f1"] is None else (found["macro_f1"], -found["log_loss"])

    def write(self, folder: Path, evidence: dict[str, Tensor]) -> None:
        """Write ``predictions.csv``: presence as of the epoch kept for it, severity as of its own."""
        first = next(iter(evidence.values()))
        covid = labels.probabilities(evidence.get("presence", first))[0].tolist()
        grades = labels.probabilities(evidence.get("severity", first))[1].tolist()
        answers = [
            Prediction(row.scan, row.scan, covid[k], tuple(grades[k]), models=1, views=1, warning=self.warning)
            for k, row in enumerate(self.rows)
        ]
        write_predictions(folder / PREDICTIONS, answers)
