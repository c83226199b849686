"""A loss that is no number: the run ends and says whose it was, or leaves that step out."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_study
from fastai.learner import CancelStepException

from cov3d import (
    Augmentation,
    Machine,
    NetSettings,
    Preprocessing,
    RunSettings,
    Training,
    load_model,
    read_study,
    train,
)
from cov3d.errors import Cov3dError
from cov3d.training import trouble
from cov3d.training.loss import JointLoss
from cov3d.training.ranks import ALONE
from cov3d.training.trouble import Trouble

SETTINGS = RunSettings(
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, penultimate=8),
    training=Training(epochs=2, batch_size=1),
    augmentation=Augmentation(flip_width=0.0),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("trouble") / "study")


def fit(study: Path, folder: Path, **values) -> Path:
    settings = replace(SETTINGS, training=replace(SETTINGS.training, **values))
    return train(read_study(study), settings, Machine(workers=1, device="cpu"), study.parent / "cache", folder).folder


def spoil(monkeypatch: pytest.MonkeyPatch, calls: set[int], gradients_only: bool = False) -> None:
    """Let some of the losses, by their number from 1 on, or only their gradients, be no numbers."""
    whole, called = JointLoss.forward, []

    def forward(self, *given):
        called.append(1)
        loss = whole(self, *given)
        if len(called) not in calls:
            return loss
        if gradients_only:
            loss.register_hook(lambda gradient: gradient * torch.nan)
            return loss
        return loss * torch.nan

    monkeypatch.setattr(JointLoss, "forward", forward)


def left_out(run: Path) -> list[str]:
    with (run / "history.csv").open(newline="") as file:
        return [row["left_out"] for row in csv.DictReader(file)]


def test_the_run_ends_before_the_step_and_names_the_scans(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, {3})
    with pytest.raises(Cov3dError) as caught:
        fit(study, tmp_path / "run")
    said = r"the loss of train/(non-)?covid/ct_scan_?\d became nan in epoch 1, batch 3; see whether these scans are sound, "
    assert re.match(said, str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("gradients_only", [False, True], ids=["loss", "gradients"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_such_steps_may_be_left_out_and_are_said_and_counted(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gradients_only: bool,
    accumulate: int,
):
    spoil(monkeypatch, {3, 6}, gradients_only)
    run = fit(study, tmp_path / "run", skip_nan=True, accumulate=accumulate)
    assert left_out(run) == ["2", "0"]
    said = capsys.readouterr().err
    assert said.count("; that step is left out") == 2 and re.search(
        r"of train/(non-)?covid/ct_scan_?\d .* batch 6; ", said
    )
    load_model(run / "last.safetensors")  # refuses weights that are no numbers


def test_a_step_that_is_left_out_leaves_the_weights_alone(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of eight steps seven are left out, and the first of them all is the only one that moves anything."""
    with monkeypatch.context() as patch:
        spoil(patch, set(range(2, 9)))
        spoiled = fit(study, tmp_path / "spoiled", skip_nan=True, epochs=1, schedule="constant")
    steps = []

    def once(self):
        steps.append(1)
        if len(steps) > 1:
            raise CancelStepException

    monkeypatch.setattr(Trouble, "before_step", once)
    alone = fit(study, tmp_path / "alone", epochs=1, schedule="constant")
    weights = [load_model(run / "last.safetensors").net.state_dict() for run in (spoiled, alone)]
    for name, tensor in weights[0].items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize("gradients_only", [False, True], ids=["loss", "gradients"])
def test_trouble_that_lasts_ends_the_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradients_only: bool
):
    monkeypatch.setattr(trouble, "MOST_IN_A_ROW", 3)
    spoil(monkeypatch, set(range(2, 99)), gradients_only)
    with pytest.raises(Cov3dError, match="and so did 3 batches before it; lower --learning-rate"):
        fit(study, tmp_path / "run", skip_nan=True)


def test_weights_that_are_no_numbers_are_not_passed_over(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Trouble, "before_step", lambda self: next(self.learn.model.parameters()).data.fill_(torch.nan))
    with pytest.raises(Cov3dError, match="the weights are no numbers since the step before; lower --learning-rate"):
        fit(study, tmp_path / "run", skip_nan=True)


def test_a_loss_of_validation_is_not_left_out(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, {10})
    with pytest.raises(Cov3dError, match=r"the loss of validation/.* became nan in epoch 1, batch 2, in validation; "):
        fit(study, tmp_path / "run", skip_nan=True)


@pytest.mark.parametrize("overflowed", [True, False])
def test_steps_that_loss_scaling_calls_off_are_counted(overflowed: bool):
    callback = Trouble(None, ALONE, 1, skip=False)
    callback.learn = SimpleNamespace(precision=SimpleNamespace(overflowed=overflowed))
    callback.after_cancel_step()
    assert callback.left_out == overflowed
