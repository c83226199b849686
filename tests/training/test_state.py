"""A run that was stopped and goes on is the run that was not, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_study

from cov3d import Augmentation, Machine, NetSettings, Preprocessing, RunSettings, Training, read_study, train
from cov3d.errors import Cov3dError, SettingError
from cov3d.training.keeper import Keeper

RESNET = RunSettings(
    task="both",
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, penultimate=8),
    training=Training(epochs=4, batch_size=4, accumulate=2, learning_rate=1e-3, clip=1.0),
    augmentation=Augmentation(flip_width=0.5, rotate=0.5, noise=0.5, elastic=0.5),
)
CONVNEXT = replace(
    RESNET,
    preprocessing=Preprocessing(width=32, depth=32),
    net=NetSettings("convnext-micro", base_width=4),
    training=replace(RESNET.training, ema=0.5, schedule="cosine", accumulate=1),
)
RUNS = {"resnet18": RESNET, "convnext-micro": CONVNEXT}
ONE = Machine(workers=1, device="cpu")
WRITTEN = ("history.csv", "presence.safetensors", "severity.safetensors", "last.safetensors", "predictions.csv")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("state") / "study")


def fit(study: Path, root: Path, settings: RunSettings, **values) -> Path:
    return train(read_study(study), settings, ONE, study.parent / "cache", root / "run", **values).folder


def stop_in(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Stop a run as Ctrl-C does, before the keeper hears of the end of an epoch."""
    whole = Keeper.end_epoch

    def end_epoch(self, row, *further):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt
        whole(self, row, *further)

    monkeypatch.setattr(Keeper, "end_epoch", end_epoch)


def without_seconds(text: str) -> list[str]:
    return [line.rpartition(",")[0] for line in text.splitlines()]


@pytest.mark.parametrize("architecture", RUNS)
@pytest.mark.parametrize("epoch", [2, 4])
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, epoch: int
):
    whole = fit(study, tmp_path / "whole", RUNS[architecture])
    with monkeypatch.context() as patch:
        stop_in(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(study, tmp_path, RUNS[architecture])
    torch.rand(7)  # another process has other generators
    resumed = fit(study, tmp_path, RUNS[architecture], resume=True)
    for name in WRITTEN:
        both = [(run / name).read_bytes() for run in (whole, resumed)]
        if name == "history.csv":
            assert without_seconds(both[0].decode()) == without_seconds(both[1].decode())
        else:
            assert both[0] == both[1], name


def test_a_run_that_is_finished_may_be_resumed_and_stays_as_it_is(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, RESNET)
    before = {name: (run / name).read_bytes() for name in WRITTEN}
    fit(study, tmp_path, RESNET, resume=True)
    assert {name: (run / name).read_bytes() for name in WRITTEN} == before


def test_another_run_does_not_go_on_with_it(study: Path, tmp_path: Path):
    fit(study, tmp_path, RESNET)
    other = replace(RESNET, training=replace(RESNET.training, learning_rate=2e-3))
    with pytest.raises(SettingError, match="other settings, scans or masks; say what it was begun with"):
        fit(study, tmp_path, other, resume=True)
    with pytest.raises(SettingError, match="--resume keeps what is there and --overwrite does not"):
        fit(study, tmp_path, RESNET, resume=True, overwrite=True)


def test_a_run_that_was_stopped_before_its_first_epoch_begins(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = fit(study, tmp_path, RESNET, resume=True)
    assert (run / "metrics.json").exists() and "no epoch had ended" in capsys.readouterr().err


def test_a_state_that_is_gone_is_said(study: Path, tmp_path: Path):
    (fit(study, tmp_path, RESNET) / "state.pt").unlink()
    with pytest.raises(SettingError, match=r"state\.pt is gone.*--overwrite"):
        fit(study, tmp_path, RESNET, resume=True)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_state_that_is_cut_is_refused_with_advice(study: Path, tmp_path: Path, part: float):
    state = fit(study, tmp_path, replace(RESNET, training=replace(RESNET.training, epochs=1))) / "state.pt"
    data = state.read_bytes()
    state.write_bytes(data[: int(part * len(data))])
    with pytest.raises(Cov3dError, match=r"state\.pt is damaged; say --overwrite"):
        fit(study, tmp_path, replace(RESNET, training=replace(RESNET.training, epochs=1)), resume=True)


def test_a_state_holds_tensors_and_plain_values_only(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, CONVNEXT)
    assert torch.load(run / "state.pt", weights_only=True)["epochs"] == 4
