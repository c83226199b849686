"""Gradients of several batches for one step: larger effective batches than the memory holds."""

from __future__ import annotations

from fastai.callback.core import Callback
from fastai.learner import CancelBatchException

from cov3d.training.precision import Precision


class Accumulate(Callback):
    """Step once for several batches, with the mean of their gradients; an epoch's last batches step in any case."""

    order = Precision.order - 4
    run_valid = False

    def __init__(self, batches: int):
        self.batches = batches

    def _group(self) -> tuple[int, int]:
        """Place in the group of batches that share a step, and the size of that group."""
        place = self.learn.iter % self.batches
        return place, min(self.batches, self.learn.n_iter - (self.learn.iter - place))

    def after_loss(self) -> None:
        """Divide, so that the gradients that add up are a mean."""
        self.learn.loss_grad = self.learn.loss_grad / self._group()[1]

    def before_step(self) -> None:
        """Step only at the group's end."""
        place, size = self._group()
        if place + 1 < size:
            raise CancelBatchException  # leaves the gradients to the next batch
