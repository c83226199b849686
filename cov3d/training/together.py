"""Gradients of several processes for one step."""

from __future__ import annotations

from fastai.callback.core import Callback

from cov3d.training.accumulate import Accumulate
from cov3d.training.order import Order
from cov3d.training.precision import Precision
from cov3d.training.ranks import Ranks
from cov3d.training.synchronise import Synchronised


class Together(Callback):
    """Each process's loss counts as much as its share of the batch, and the gradients are summed before the step.

    Without synchronised BatchNorm each process normalises by its own share; running statistics become their mean before they
    are used.
    """

    order = Accumulate.order + 1  # after a step that waits for more batches is called off
    assert order < Precision.order

    def __init__(self, ranks: Ranks, order: Order):
        self.ranks, self.rows = ranks, order

    def before_fit(self) -> None:
        """Find what is synchronised within the forward pass."""
        self.synchronised = [module for module in self.learn.model.modules() if isinstance(module, Synchronised)]

    def before_batch(self) -> None:
        """How much of the batch is here."""
        if not self.learn.training:
            return
        batch = self.learn.iter
        self.share = len(self.rows.share(batch)) / len(self.rows.whole(batch))
        for module in self.synchronised:
            module.counts = self.share > 0

    def after_loss(self) -> None:
        """Weigh."""
        if self.learn.training:
            self.learn.loss_grad = self.learn.loss_grad * self.share

    def before_step(self) -> None:
        """Sum."""
        self.ranks.add_up([p.grad for p in self.learn.model.parameters() if p.grad is not None])

    def after_train(self) -> None:
        """Running statistics are everybody's, before they score."""
        self.share_statistics()

    def share_statistics(self) -> None:
        """Make running statistics, and their moving average, the mean over processes.

        Both are sums in which every batch counts by its place alone, so that it does not matter when, or how often.
        """
        models = [self.learn.model, *([self.learn.ema.average.module] if hasattr(self.learn, "ema") else [])]
        means = [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
        for buffer in means:
            buffer /= self.ranks.size
        self.ranks.add_up(means)
