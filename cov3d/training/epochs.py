"""What happens in each epoch: losses are noted, validation batches judged, and the keeper told at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from fastai.callback.core import Callback

from cov3d.errors import Cov3dError
from cov3d.training.keeper import Keeper


class Epochs(Callback):
    """Gathers what an epoch gives and hands it to a :class:`Keeper`."""

    order = 60  # after everything that changes a batch

    def __init__(self, keeper: Keeper, step: Callable[[str], None]):
        self.keeper = keeper
        self.step = step

    def before_epoch(self) -> None:
        """Start the clock and the lists."""
        self.begin = time.monotonic()
        self.keeper.judge.begin()
        self.losses: dict[bool, list[float]] = {True: [], False: []}

    def after_batch(self) -> None:
        """Note the loss, and show the judge validation batches."""
        loss = self.learn.loss.item()
        if not math.isfinite(loss):
            raise Cov3dError(
                f"the loss became {loss} in epoch {self.learn.epoch + 1}; lower --learning-rate, or --precision fp32"
            )
        self.losses[self.learn.training] += [loss] * len(self.learn.yb[0])  # the last batch may be smaller
        if not self.learn.training:
            self.keeper.judge.see(self.learn.pred, self.learn.yb)
            return
        self.step(f"epoch {self.learn.epoch + 1}, loss {loss:.3f}")

    def after_epoch(self) -> None:
        """Score, keep, write."""
        validation = self.losses[False]
        row = {
            "epoch": self.learn.epoch + 1,
            "learning_rate": float(self.learn.opt.hypers[-1]["lr"]),
            "train_loss": float(np.mean(self.losses[True])),
            "validation_loss": float(np.mean(validation)) if validation else None,
        }
        self.keeper.end_epoch(row, self.learn.model, time.monotonic() - self.begin)
