"""A loss that is no number: said with the scans that had it, or passed over."""

from __future__ import annotations

import math

import torch
from fastai.callback.core import Callback
from fastai.learner import CancelBatchException, CancelStepException

from cov3d.console import few, say
from cov3d.errors import Cov3dError
from cov3d.training.loaders import Loaders
from cov3d.training.precision import Precision
from cov3d.training.ranks import Ranks

MOST_IN_A_ROW = 20
CURES = "lower --learning-rate, say --clip 5, or --precision fp32"


class Trouble(Callback):
    """Ends a training whose loss is no number, before its step; or, with ``skip``, leaves that step out.

    What comes of weights that are no numbers cannot be passed over, nor can trouble that lasts. Steps that loss scaling calls
    off, since half precision overflowed, are counted, too.
    """

    order = Precision.order + 5  # after it has left its precision, and after gradients are clipped

    def __init__(self, data: Loaders, ranks: Ranks, accumulate: int, skip: bool):
        self.data, self.ranks, self.accumulate, self.skip = data, ranks, accumulate, skip
        self.in_a_row = self.left_out = 0
        self.leaving = False  # this step

    def state_dict(self) -> dict[str, int]:
        """How much was left out of this epoch."""
        return {"left_out": self.left_out, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.left_out, self.in_a_row = state["left_out"], state["in_a_row"]

    def before_epoch(self) -> None:
        """Count anew, unless the run goes on within an epoch."""
        if not self.learn.first_batch:
            self.left_out = 0

    def after_loss(self) -> None:
        """Look at the loss."""
        wrong = not bool(torch.isfinite(self.learn.loss_grad.detach()).all())
        if self.learn.training:  # shares of validation have not all as many batches, so nobody is asked there
            [wrong] = self.ranks.any(wrong)
        if not wrong:
            return
        loss = self.learn.loss.item()
        self._leave_out(f"the loss of {self._scans()} became {'no number' if math.isfinite(loss) else loss}")
        if self.accumulate == 1:
            raise CancelBatchException
        self.learn.loss_grad = 0 * sum(p.sum() for p in self.learn.model.parameters())  # the others of this step count

    def before_step(self) -> None:
        """Look at the gradients, where steps may be left out; else the next loss tells."""
        gradients = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
        if self.skip and not torch.stack([g.isfinite().all() for g in gradients]).all():
            self._leave_out(f"the gradients of {self._scans()} are no numbers")
            raise CancelStepException

    def after_batch(self) -> None:
        """A step that was taken ends a row of those that were not."""
        if self.learn.training and not self.leaving:
            self.in_a_row = 0
        self.leaving = False

    def after_cancel_step(self) -> None:
        """Count what loss scaling called off."""
        if self.learn.precision.overflowed:
            self.left_out += 1

    def _leave_out(self, what: str) -> None:
        """Count it and say so.

        Raises:
            Cov3dError: nobody asked for that, or it would not help.
        """
        what += f" in epoch {self.learn.epoch + 1}, batch {self.learn.iter + 1}"
        if not all(bool(p.isfinite().all()) for p in self.learn.model.parameters()):
            raise Cov3dError(f"{what}: the weights are no numbers since the step before; {CURES}")
        if not self.learn.training:
            raise Cov3dError(f"{what}, in validation; {CURES}")
        if not self.skip:
            raise Cov3dError(
                f"{what}; see whether these scans are sound, {CURES}, or --skip-nan to leave such steps out"
            )
        self.left_out, self.in_a_row, self.leaving = self.left_out + 1, self.in_a_row + 1, True
        if self.in_a_row > MOST_IN_A_ROW:
            raise Cov3dError(f"{what}, and so did {MOST_IN_A_ROW} batches before it; {CURES}")
        say(f"note: {what}; that step is left out")

    def _scans(self) -> str:
        return few(self.data.names(self.learn.training, self.learn.iter))
