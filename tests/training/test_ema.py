"""The moving average of the weights, against its closed form."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from fastai.learner import Learner, TrainEvalCallback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cov3d.training.accumulate import Accumulate
from cov3d.training.ema import Ema
from cov3d.training.loaders import Loaders
from cov3d.training.order import Order

DECAY = 0.7


class Watch(TrainEvalCallback):
    """Notes the weights after each step, and whose weights validate."""

    order = 70

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.modes: list[tuple[bool, bool]] = []

    def before_train(self) -> None:
        pass

    def before_validate(self) -> None:
        self.validated.append(copy(self.learn.model))
        self.modes.append((self.learn.model.training, self.learn.ema.trained.training))

    def after_step(self) -> None:
        self.steps.append(copy(self.learn.model))
        assert self.learn.model.training


def copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone().double() for name, values in model.state_dict().items()}


def fitted(epochs: int = 2, *further) -> Watch:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    data = TensorDataset(torch.randn(12, 4), torch.randn(12, 1))
    data = Loaders(
        DataLoader(data, 3), DataLoader(data, 3), torch.device("cpu"), (Order(12, 3), Order(12, 3)), ([], [])
    )
    watch = Watch()
    learner = Learner(
        data, net, loss_func=nn.MSELoss(), default_cbs=False, cbs=[TrainEvalCallback(), Ema(DECAY), watch, *further]
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs, lr=0.1)
    return watch


def closed_form(steps: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """d^(n−1)·w1 + Σ (1−d)·d^(n−k)·wk."""
    n = len(steps)
    return DECAY ** (n - 1) * steps[0][name] + sum(
        (1 - DECAY) * DECAY ** (n - k) * steps[k - 1][name] for k in range(2, n + 1)
    )


def test_the_average_is_its_closed_form_batchnorms_statistics_included():
    watch = fitted()
    assert len(watch.steps) == 8
    for epoch, average in enumerate(watch.validated, 1):
        for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var", "2.bias"):
            expected = closed_form(watch.steps[: 4 * epoch], name)
            torch.testing.assert_close(average[name], expected, atol=1e-6, rtol=1e-5)


def test_training_goes_on_with_the_weights_and_not_with_their_average():
    watch = fitted()
    assert not torch.allclose(watch.validated[0]["0.weight"], watch.steps[3]["0.weight"])
    torch.manual_seed(0)
    assert watch.modes == [(False, True), (False, True)]  # who validates is in evaluation mode
    step = watch.steps[4]["0.weight"] - watch.steps[3]["0.weight"]
    assert step.abs().max() < 0.2  # Adam's step of .1, from the weights themselves


def test_a_step_made_of_several_batches_counts_once():
    assert len(fitted(1, Accumulate(2)).steps) == 2


def test_a_step_that_was_called_off_is_not_averaged():
    """fastai calls ``after_step`` all the same, as after a step that loss scaling leaves out."""
    net = nn.Linear(1, 1)
    callback = Ema(0.5)
    callback.learn = SimpleNamespace(model=net)
    callback.before_fit()
    for called_off in (True, False, True):
        callback.before_step()
        if called_off:
            callback.after_cancel_step()
        callback.after_step()
    assert callback.average.n_averaged == 1
