"""What happens at the end of each epoch: the whole validation set is scored, the best epoch kept, the history written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback

from cov3d import labels
from cov3d.commit import commit_json
from cov3d.config import RunSettings, Task
from cov3d.console import say
from cov3d.errors import Cov3dError
from cov3d.metrics import score_presence, score_severity
from cov3d.nets.model import save_model
from cov3d.predictions import Prediction, write_predictions
from cov3d.runs import CONFIG, FINISHED, PREDICTIONS, RUN_FILES
from cov3d.scans.study import Row
from cov3d.tables import write_table
from cov3d.training.curves import draw_curves
from cov3d.training.split import Split

SELECTED = (
    "these validation scans also chose the epoch, so the score is optimistic; evaluate on scans that nobody chose by"
)

UNCHOSEN = "these validation scans did not choose the epoch: it is the last one"
SCORELESS = "every labelled scan trained, so there is no score; cov3d cross-validate gives one"
UNREAD = "none of the scans held out could be read, so there is no score; the last epoch is kept"


class Epochs(Callback):
    """Gathers what an epoch gives and hands it to a :class:`Keeper`."""

    order = 60  # after everything that changes a batch

    def __init__(self, keeper: Keeper, step: Callable[[str], None]):
        self.keeper = keeper
        self.step = step

    def before_epoch(self) -> None:
        """Start the clock and the lists."""
        self.begin = time.monotonic()
        self.logits: list[torch.Tensor] = []
        self.losses: dict[bool, list[float]] = {True: [], False: []}

    def after_batch(self) -> None:
        """Note the loss, and in validation the logits."""
        loss = self.learn.loss.item()
        if not math.isfinite(loss):
            raise Cov3dError(
                f"the loss became {loss} in epoch {self.learn.epoch + 1}; lower --learning-rate, or --precision fp32"
            )
        self.losses[self.learn.training] += [loss] * len(self.learn.yb[0])  # the last batch may be smaller
        if not self.learn.training:
            self.logits.append(self.learn.pred.detach().float().cpu())
            return
        self.step(f"epoch {self.learn.epoch + 1}, loss {loss:.3f}")

    def after_epoch(self) -> None:
        """Score, keep, write."""
        row = {
            "epoch": self.learn.epoch + 1,
            "learning_rate": self.learn.opt.hypers[-1]["lr"],
            "train_loss": float(np.mean(self.losses[True])),
            "validation_loss": float(np.mean(self.losses[False])) if self.logits else None,
        }
        logits = torch.cat(self.logits) if self.logits else torch.empty(0, labels.LOGITS)
        self.keeper.end_epoch(row, logits, self.learn.model, time.monotonic() - self.begin)


class Keeper:
    """The run's folder as it grows: the kept epoch of each task, the last one, and the history of all.

    Kept is the best epoch: the one of highest macro F1, and among equals (on few scans there are many) of the lowest log
    loss of that task. ``note`` says how it is chosen: the last unless it is ``SELECTED``.
    """

    def __init__(self, folder: Path, rows: Sequence[Row], settings: RunSettings, config: dict[str, Any], note: str):
        self.folder, self.rows, self.settings, self.config, self.note = folder, rows, settings, config, note
        self.keep_last = note != SELECTED
        self.word = "last" if self.keep_last else "best"
        self.summary = config["summary"]
        self.presence = np.array([row.presence for row in rows], int)
        self.severity = np.array([row.severity for row in rows], int)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, dict[str, Any]] = {}  # by task: epoch, scores, logits

    @property
    def kept_tasks(self) -> tuple[Task, ...]:
        """The tasks that have a best epoch."""
        return ("presence", "severity") if self.settings.task == "both" else (self.settings.task,)

    def end_epoch(self, row: dict[str, Any], logits: torch.Tensor, model: torch.nn.Module, seconds: float) -> None:
        """Score validation logits ``(N, 6)``, keep the model if it is the best so far, and write the history."""
        if not self.history:
            self._begin()
        scores = self.score(logits)
        for task, found in scores.items():
            row.update({f"{task}_f1": found["macro_f1"], f"{task}_accuracy": found["accuracy"]})
            row[f"{task}_log_loss"] = found["log_loss"]
            row.update({f"{task}_f1_{name}": found["f1"].get(name) for name in found["classes"]})
        row["seconds"] = round(seconds, 2)
        self.history.append(row)
        ranks = {task: _rank(scores[task]) for task in self.kept_tasks}
        better = [task for task in ranks if self._is_kept(task, ranks[task], row["epoch"])]
        for task in better:
            self.best[task] = {"epoch": row["epoch"], "rank": ranks[task], "scores": scores[task], "logits": logits}
            self._save(model, f"{task}.safetensors", task, row["epoch"], {task: scores[task]["macro_f1"]})
        self._say_epoch(row, better)
        if row["epoch"] == self.summary["epochs"]:
            f1 = {task: scores[task]["macro_f1"] for task in scores}
            self._save(model, "last.safetensors", self.settings.task, row["epoch"], f1)
        write_table(self.folder / "history.csv", list(row), self.history)

    def _is_kept(self, task: str, rank: tuple[float, float], epoch: int) -> bool:
        """Whether an epoch takes the place of the one that is kept for a task."""
        if self.keep_last:
            return bool(epoch == self.summary["epochs"])
        return task not in self.best or rank > self.best[task]["rank"]

    def score(self, logits: torch.Tensor) -> dict[str, dict[str, Any]]:
        """Scores of both tasks on the whole validation set."""
        covid, severity = (answer.numpy() for answer in labels.probabilities(logits))
        return {
            "presence": score_presence(self.presence, covid),
            "severity": score_severity(self.severity, severity),
        }

    def finish(self) -> None:
        """Write validation predictions and scores of the kept epochs, and the curves."""
        presence = self.best.get("presence") or self.best["severity"]
        severity = self.best.get("severity") or self.best["presence"]
        covid = labels.probabilities(presence["logits"])[0].tolist()
        grades = labels.probabilities(severity["logits"])[1].tolist()
        write_predictions(
            self.folder / PREDICTIONS,
            [
                Prediction(row.scan, row.scan, covid[k], tuple(grades[k]), models=1, views=1)
                for k, row in enumerate(self.rows)
            ],
        )
        kept = {
            task: {"epoch": best["epoch"], **(best["scores"] if self.rows else {})} for task, best in self.best.items()
        }
        draw_curves(self.folder / "curves.png", self.history, {task: best["epoch"] for task, best in kept.items()})
        commit_json(self.folder / FINISHED, {**kept, "note": self.note})
        for task, best in kept.items():
            score = f"{task} macro F1 {_four(best['macro_f1'])} in epoch" if self.rows else f"{task} model: epoch"
            say(f"{self.word} {score} {best['epoch']}")
        say(f"note: {self.note}")

    def _begin(self) -> None:
        """Take the place of an earlier run: only now, when an epoch is done and all that could fail at once has not."""
        for name in RUN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        commit_json(self.folder / CONFIG, self.config)

    def _save(self, model: torch.nn.Module, name: str, task: Task, epoch: int, f1: dict[str, Any]) -> None:
        scored_on = f"its validation scans; {self.note}" if self.rows else self.note
        summary = {**self.summary, "epoch": epoch, "macro_f1": f1, "scored_on": scored_on}
        save_model(self.folder / name, model, self.settings.net, self.settings.preprocessing, task, summary)

    def _say_epoch(self, row: dict[str, Any], better: Sequence[str]) -> None:
        if row["epoch"] == 1:
            say("epoch  train loss  valid loss  presence F1  severity F1  seconds")
        presence, severity = (_four(row[f"{task}_f1"]) for task in ("presence", "severity"))
        best = f"  {self.word} {' and '.join(better)}" if better else ""
        say(
            f"{row['epoch']:>5}  {row['train_loss']:>10.4f}  {_four(row['validation_loss']):>10}  {presence:>11}  {severity:>11}"
            f"  {row['seconds']:>7.1f}{best}"
        )


def epoch_note(wanted: Split, usable: Split, keep_last: bool) -> str:
    """How the kept epoch is chosen, and what that makes of its score, by the scans held out and those that can be read."""
    if not wanted.validation:
        return SCORELESS
    if not usable.validation:
        return UNREAD
    return UNCHOSEN if keep_last else SELECTED


def _rank(scores: dict[str, Any]) -> tuple[float, float]:
    """How good an epoch is for a task: macro F1, and among equals the log loss."""
    return (-1.0, 0.0) if scores["macro_f1"] is None else (scores["macro_f1"], -scores["log_loss"])


def _four(score: float | None) -> str:
    return "n/a" if score is None else f"{score:.4f}"
