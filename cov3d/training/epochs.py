"""What happens in each epoch: losses are noted, validation batches judged, and the keeper told at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from fastai.callback.core import Callback

from cov3d.training.ranks import Ranks
from cov3d.training.scorer import Scorer


class EpochKeeper(Protocol):
    """What is told of each epoch."""

    @property
    def judge(self) -> Scorer:
        """What sees the validation batches."""

    def end_epoch(self, row: dict[str, Any], model: torch.nn.Module, seconds: float) -> None:
        """Take in an epoch's numbers, and the model as it was scored."""

    def state_dict(self) -> Any:
        """What is kept so far, as tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Go on from that."""


class Epochs(Callback):
    """Gathers what an epoch gives, of all processes, and hands it to a keeper."""

    order = 60  # after everything that changes a batch

    def __init__(self, keeper: EpochKeeper, step: Callable[[str], None], ranks: Ranks):
        self.keeper, self.step, self.ranks = keeper, step, ranks
        self.sums: dict[bool, list[float]] = {}  # of losses in training and in validation: losses times rows, and rows
        self.before = 0.0  # seconds that the epoch had taken when the run was stopped

    def state_dict(self) -> dict[str, Any]:
        """What there is of the epoch so far."""
        return {"train": self.ranks.sum(*self.sums.get(True, [0.0, 0])), "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on within an epoch."""
        self.sums = {True: state["train"] if self.ranks.first else [0.0, 0]}
        self.before = state["seconds"]

    def before_epoch(self) -> None:
        """Start the clock and the sums."""
        within = self.learn.first_batch > 0
        self.begin = time.monotonic() - (self.before if within else 0.0)
        self.sums = {True: self.sums[True] if within else [0.0, 0], False: [0.0, 0]}
        self.keeper.judge.begin()

    def after_batch(self) -> None:
        """Note the loss, and show the judge validation batches."""
        training, loss = self.learn.training, self.learn.loss.item()
        rows = len(self.learn.dls.orders[0 if training else 1].share(self.learn.iter))
        if math.isfinite(loss):  # one that is not was left out of the step, too
            total, seen = self.sums[training]
            self.sums[training] = [total + loss * rows, seen + rows]
        if training:
            self.step(f"epoch {self.learn.epoch + 1}, loss {loss:.3f}")
        else:
            self.keeper.judge.see(self.learn.pred, self.learn.yb)

    def after_epoch(self) -> None:
        """Score, keep, write."""
        self.keeper.judge.gather(self.ranks)
        row = {
            "epoch": self.learn.epoch + 1,
            "learning_rate": float(self.learn.opt.hypers[-1]["lr"]),
            "train_loss": self._mean(True),
            "validation_loss": self._mean(False),
            "left_out": self.learn.trouble.left_out,
        }
        if self.ranks.first:
            self.keeper.end_epoch(row, self.learn.model, self._seconds())

    def _mean(self, training: bool) -> float | None:
        total, rows = self.ranks.sum(*self.sums[training])
        return total / rows if rows else None

    def _seconds(self) -> float:
        return time.monotonic() - self.begin
