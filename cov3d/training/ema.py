"""The exponential moving average of the weights, which is scored, kept and answers in place of the last step's weights."""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Ema(Callback):
    """After each step a ← d·a + (1−d)·w, over parameters and BatchNorm's statistics; the first step's weights begin it.

    Validation sees the average: it stands in the learner's place from the end of an epoch's training to the next one's
    beginning.
    """

    order = -20  # before the network is told that it trains or validates

    def __init__(self, decay: float):
        self.decay = decay

    def before_fit(self) -> None:
        """Begin with the network's own weights."""
        self.trained = self.learn.model
        self.average = AveragedModel(
            self.trained, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True
        )  # BatchNorm's statistics must follow the weights

    def state_dict(self) -> dict[str, Any]:
        """The average, and how many steps are in it."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an average."""
        self.average.load_state_dict(state)

    def before_train(self) -> None:
        """Train on with the weights, not with their average."""
        self.learn.model = self.trained

    def before_step(self) -> None:
        """Assume that the step will be taken."""
        self.stepped = True

    def after_cancel_step(self) -> None:
        """Leave out a step that fp16's overflow or ``--skip-nan`` called off: fastai calls ``after_step`` all the same."""
        self.stepped = False

    def after_step(self) -> None:
        """Take the step into the average."""
        if self.stepped:
            self.average.update_parameters(self.trained)

    def before_validate(self) -> None:
        """Score the average."""
        self.learn.model = self.average.module
