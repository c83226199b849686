"""The epochs of a training on pictures: the learning rate of each step, and each epoch's end scored and written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback

from cov3d.commit import commit_json
from cov3d.console import say
from cov3d.errors import Cov3dError
from cov3d.runs import CONFIG, RUN_FILES
from cov3d.tables import write_table

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


class PictureEpochs(Callback):
    """Scores each epoch and writes the history; the first epoch's end takes an earlier run's place in the folder."""

    order = 60  # after everything that changes a batch

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder, self.config = folder, config
        self.step: Callable[[str], None] = lambda text: None  # a progress' own, once there is one
        self.history: list[dict[str, Any]] = []

    def state_dict(self) -> list[dict[str, Any]]:
        """The history."""
        return self.history

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on with a history."""
        self.history = state

    def before_epoch(self) -> None:
        """Start the clock and the lists."""
        self.begin = time.monotonic()
        self.losses: list[float] = []
        self.logits: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def after_batch(self) -> None:
        """Note the loss, and in validation the answers."""
        if not self.learn.training:
            self.logits.append(self.learn.pred.detach().float().cpu())
            self.labels.append(self.learn.yb[0].cpu())
            return
        loss = self.learn.loss.item()
        if not math.isfinite(loss):
            raise Cov3dError(
                f"the loss became {loss} in epoch {self.learn.epoch + 1}; lower --learning-rate, or --precision fp32"
            )
        self.losses.append(loss)
        self.step(f"epoch {self.learn.epoch + 1}, loss {loss:.3f}")

    def after_epoch(self) -> None:
        """Score, write, say."""
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        row = {
            "epoch": self.learn.epoch + 1,
            "learning_rate": self.learn.opt.hypers[-1]["lr"],
            "train_loss": float(np.mean(self.losses)),
            "validation_loss": float(F.cross_entropy(logits, labels)),
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "seconds": round(time.monotonic() - self.begin, 2),
        }
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
        for name in RUN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        commit_json(self.folder / CONFIG, self.config)
        say("epoch  train loss  valid loss  accuracy  seconds")
