"""The epochs of a training on pictures: the learning rate of each step, and each epoch's end scored and written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import Tensor

from cov3d.commit import commit_json
from cov3d.console import say
from cov3d.runs import CONFIG, clear_run
from cov3d.tables import write_table
from cov3d.training.scorer import Measure, Scorer, Scores

HISTORY = "history.csv"
FAILURES = "failures.csv"


class WarmedCosine(Callback):
    """The learning rate of each batch: up along a line, then down along a cosine; see :func:`rate_at`."""

    run_valid = False

    def __init__(self, warmup: float, highest: float, final: float):
        self.warmup, self.highest, self.final = warmup, highest, final

    def before_batch(self) -> None:
        """Set it."""
        epoch = self.learn.epoch + self.learn.iter / self.learn.n_iter
        step = 1 / self.learn.n_iter
        self.learn.opt.set_hyper("lr", rate_at(epoch, step, self.learn.n_epoch, self.warmup, self.highest, self.final))


def rate_at(epoch: float, step: float, epochs: int, warmup: float, highest: float, final: float) -> float:
    """The learning rate for the batch from ``epoch`` to ``epoch + step``, in epochs that are done.

    The last batch of the warm-up has the highest rate, and the first has no zero.
    """
    if epoch < warmup:
        return highest * min(1.0, (epoch + step) / warmup)
    return final + (highest - final) * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2


class PictureScorer(Scorer):
    """How many pictures are called right, by their likeliest class."""

    measures = {"pictures": Measure("accuracy", "accuracy", "accuracy")}  # noqa: RUF012

    def __init__(self, classes: int):
        self.noted_of_none = (torch.empty(0, classes), torch.empty(0, dtype=torch.long))
        self.begin()

    def noted(self, answers: Any, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return answers.float(), batch[0]

    def scores(self) -> Scores:
        logits, classes = self.seen()
        right = (logits.argmax(1) == classes).float().mean()
        return {"pictures": {"loss": float(F.cross_entropy(logits, classes)), "accuracy": float(right)}}

    def columns(self, scores: Scores) -> dict[str, Any]:
        return {"validation_loss": scores["pictures"]["loss"], "accuracy": scores["pictures"]["accuracy"]}


class PictureKeeper:
    """Writes the history of each epoch; the first one's end takes an earlier run's place in the folder."""

    def __init__(self, folder: Path, config: dict[str, Any], classes: int):
        self.folder, self.config = folder, config
        self.judge = PictureScorer(classes)
        self.history: list[dict[str, Any]] = []

    def state_dict(self) -> list[dict[str, Any]]:
        """The history."""
        return self.history

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on with a history."""
        self.history = state

    def end_epoch(self, row: dict[str, Any], model: torch.nn.Module, seconds: float) -> None:
        """Score, write, say."""
        row = {**row, **self.judge.columns(self.judge.scores()), "seconds": round(seconds, 2)}
        if not self.history:
            self._begin()
        self.history = [*self.history, row]
        write_table(self.folder / HISTORY, list(row), self.history)
        say(
            f"{row['epoch']:>5}  {row['train_loss']:>10.4f}  {row['validation_loss']:>10.4f}  {row['accuracy']:>8.4f}"
            f"  {row['seconds']:>7.1f}"
        )

    def _begin(self) -> None:
        """Take the place of an earlier run: only now, when an epoch is done and all that could fail at once has not."""
        clear_run(self.folder)
        commit_json(self.folder / CONFIG, self.config)
        say("epoch  train loss  valid loss  accuracy  seconds")
