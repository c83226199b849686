"""What an epoch is worth: the whole validation set's answers, scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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

Scores = dict[str, dict[str, Any]]  # by what is scored
Rank = tuple[float, ...]


class Measure(NamedTuple):
    """A number that people look at: its name, its key in the scores, its column in the history."""

    name: str
    key: str
    column: str


class Judge(ABC):
    """Sees the batches of a validation set, and scores what it has seen.

    ``measures`` are the numbers that people look at, by what is scored; ``kept_for`` says for which of these a best epoch is
    kept, each in a model file of its name.
    """

    measures: dict[str, Measure]
    kept_for: tuple[str, ...]

    @abstractmethod
    def begin(self) -> None:
        """Forget what was seen: an epoch begins."""

    @abstractmethod
    def see(self, answers: Any, batch: Sequence[Tensor]) -> None:
        """Take in a batch: the network's answers, and labels as the loader gives them."""

    @abstractmethod
    def scores(self) -> Scores:
        """Scores of all that was seen; a score that is not defined is None."""

    @abstractmethod
    def columns(self, scores: Scores) -> dict[str, Any]:
        """The same as columns of the history."""

    @abstractmethod
    def rank(self, kept: str, scores: Scores) -> Rank:
        """How good an epoch is for what a model is kept for; more is better."""

    @abstractmethod
    def evidence(self) -> Any:
        """What was seen, in tensors, to be written if the epoch is kept."""

    def number(self, scored: str, found: dict[str, Any]) -> float | None:
        """The number that people look at."""
        return found.get(self.measures[scored].key)

    @abstractmethod
    def write(self, folder: Path, evidence: dict[str, Any]) -> None:
        """Write what the kept epochs answered into the run's folder, by what they are kept for."""


class ClassJudge(Judge):
    """Presence and severity of scans, in the order in which the loader gives them.

    An epoch is better for a task by macro F1, and among equals (on few scans there are many) by the log loss. ``shown`` is the
    training's summary: what its answers do not say is said beside them.
    """

    def __init__(self, rows: Sequence[Row], task: Task, shown: Summary):
        self.rows = rows
        self.warning = "; ".join(blind_spots([shown], [shown]))
        self.kept_for = ("presence", "severity") if task == "both" else (task,)
        self.measures = {task: Measure("macro F1", "macro_f1", f"{task}_f1") for task in ("presence", "severity")}
        self.presence = np.array([row.presence for row in rows], int)
        self.severity = np.array([row.severity for row in rows], int)
        self.begin()

    def begin(self) -> None:
        self.logits: list[Tensor] = []

    def see(self, answers: Any, batch: Sequence[Tensor]) -> None:
        self.logits.append(answers.detach().float().cpu())

    def evidence(self) -> Tensor:
        return torch.cat(self.logits) if self.logits else torch.empty(0, labels.LOGITS)

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
