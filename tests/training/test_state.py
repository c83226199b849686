"""A run that was stopped and goes on is the run that was not, to the bit."""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_study

from cov3d import Augmentation, Machine, NetSettings, Preprocessing, RunSettings, Saving, Training, read_study, train
from cov3d.errors import Cov3dError, SettingError
from cov3d.locks import alone_in
from cov3d.stopping import HEARD, Stopped
from cov3d.training.epochs import Epochs
from cov3d.training.keeper import Keeper
from cov3d.training.state import State, read_state

RESNET = RunSettings(
    task="both",
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, penultimate=8),
    training=Training(epochs=3, batch_size=1, accumulate=2, learning_rate=1e-3, clip=1.0),
    augmentation=Augmentation(flip_width=0.5, rotate=0.5, noise=0.5, elastic=0.5),
)
CONVNEXT = replace(
    RESNET,
    preprocessing=Preprocessing(width=32, depth=32),
    net=NetSettings("convnext-micro", base_width=4, drop_path=0.5),
    training=replace(RESNET.training, ema=0.5, schedule="cosine", batch_size=2, accumulate=1),
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


def stop_at(monkeypatch: pytest.MonkeyPatch, batch: int, number: signal.Signals) -> None:
    """Send this process a signal in the middle of a batch, of training or of validation, counted over all epochs."""
    whole, seen = Epochs.after_batch, []

    def after_batch(self):
        seen.append(batch)
        if len(seen) == batch:
            signal.raise_signal(number)
        whole(self)

    monkeypatch.setattr(Epochs, "after_batch", after_batch)


def assert_equal(whole: Path, resumed: Path) -> None:
    """Whether two runs wrote the same, to the bit but for the time they took."""
    for name in WRITTEN:
        both = [(run / name).read_bytes() for run in (whole, resumed)]
        if name == "history.csv":
            assert without_seconds(both[0].decode()) == without_seconds(both[1].decode())
        else:
            assert both[0] == both[1], name


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nobody stopped."""
    return {name: fit(study, tmp_path_factory.mktemp(name), settings) for name, settings in RUNS.items()}


@pytest.mark.parametrize("architecture", RUNS)
@pytest.mark.parametrize("batch", [1, 2, 4, 6, 7, 9, 12, 15, 18, 20])
def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted_to_the_bit(
    study: Path,
    tmp_path: Path,
    whole: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    listening: None,
    architecture: str,
    batch: int,
):
    number = HEARD[batch % len(HEARD)]
    with monkeypatch.context() as patch:
        stop_at(patch, batch, number)
        with pytest.raises(Stopped, match=rf"stopped by {number.name} after batch \d of \d in epoch \d$"):
            fit(study, tmp_path, RUNS[architecture])
    torch.rand(7)  # another process has other generators
    assert_equal(whole[architecture], fit(study, tmp_path, RUNS[architecture], resume=True))


def test_time_that_is_up_stops_a_run_again_and_again_and_nothing_is_lost(
    study: Path, tmp_path: Path, whole: dict[str, Path]
):
    for _ in range(100):
        try:
            run = fit(study, tmp_path, CONVNEXT, resume=(tmp_path / "run").exists(), saving=Saving(max_hours=0.0))
            break
        except Stopped as stop:
            assert str(stop).startswith("stopped by --max-hours 0 after batch")
    assert_equal(whole["convnext-micro"], run)


@pytest.mark.parametrize("architecture", RUNS)
@pytest.mark.parametrize("epoch", [2, 3])
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(
    study: Path,
    tmp_path: Path,
    whole: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    epoch: int,
):
    with monkeypatch.context() as patch:
        stop_in(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(study, tmp_path, RUNS[architecture])
    torch.rand(7)  # another process has other generators
    resumed = fit(study, tmp_path, RUNS[architecture], resume=True)
    assert_equal(whole[architecture], resumed)


def test_a_run_that_is_finished_may_be_resumed_and_stays_as_it_is(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, RESNET)
    before = {name: (run / name).read_bytes() for name in WRITTEN}
    fit(study, tmp_path, RESNET, resume=True)
    assert {name: (run / name).read_bytes() for name in WRITTEN} == before


def test_another_run_does_not_go_on_with_it(study: Path, tmp_path: Path):
    fit(study, tmp_path, RESNET)
    other = replace(RESNET, training=replace(RESNET.training, learning_rate=2e-3))
    with pytest.raises(SettingError, match="other settings, scans, masks or processes; say what it was begun with"):
        fit(study, tmp_path, other, resume=True)
    with pytest.raises(SettingError, match="--resume keeps what is there and --overwrite does not"):
        fit(study, tmp_path, RESNET, resume=True, overwrite=True)


def test_a_run_that_was_stopped_before_its_first_epoch_begins(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = fit(study, tmp_path, RESNET, resume=True)
    assert (run / "metrics.json").exists() and "nothing had been saved" in capsys.readouterr().err


def test_a_run_that_was_killed_between_its_first_models_and_its_first_state_begins_again(
    study: Path, tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(State, "after_epoch", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(study, tmp_path, CONVNEXT)
    assert (tmp_path / "run" / "severity.safetensors").exists() and not (tmp_path / "run" / "state.pt").exists()
    assert_equal(whole["convnext-micro"], fit(study, tmp_path, CONVNEXT, resume=True))


def test_what_was_saved_before_stays_until_what_took_its_place_is_whole(
    study: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The state is damaged, so the one before is gone on with; while the next is written, that one is all there is."""
    shutil.copytree(stopped, tmp_path / "run")
    good = (tmp_path / "run" / "state-before.pt").read_bytes()
    (tmp_path / "run" / "state.pt").write_bytes(b"cut")
    monkeypatch.setattr("cov3d.training.state.commit", lambda path, write: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(study, tmp_path, CONVNEXT, resume=True, saving=Saving(save_every=0))
    assert (tmp_path / "run" / "state-before.pt").read_bytes() == good


def test_two_runs_do_not_write_one_folder(study: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    with alone_in(tmp_path / "run"), pytest.raises(Cov3dError, match="another run writes it at this moment"):
        fit(study, tmp_path, CONVNEXT)


def test_a_state_that_is_gone_is_said(study: Path, tmp_path: Path):
    (fit(study, tmp_path, RESNET) / "state.pt").unlink()
    with pytest.raises(SettingError, match=r"state\.pt is gone.*--overwrite"):
        fit(study, tmp_path, RESNET, resume=True)


def damage(path: Path, seed: int) -> None:
    """Cut a file anywhere, or turn one of its bits."""
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    place = rng.randrange(len(data))
    if seed % 2:
        del data[place:]
    else:
        data[place] ^= 1 << rng.randrange(8)
    path.unlink()  # the file may have two names
    path.write_bytes(data)


@pytest.fixture(scope="module")
def stopped(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two states."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3, signal.SIGUSR1)
        with pytest.raises(Stopped):
            fit(study, tmp_path_factory.mktemp("stopped"), CONVNEXT, saving=Saving(save_every=0))
    return next(tmp_path_factory.getbasetemp().glob("stopped*/run"))


@pytest.mark.parametrize("seed", range(50))
def test_a_state_that_is_damaged_is_noticed_and_the_one_before_it_taken(
    stopped: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
):
    for name in ("state.pt", "state-before.pt"):
        (tmp_path / name).write_bytes((stopped / name).read_bytes())
    run = torch.load(tmp_path / "state.pt", weights_only=True)["run"]
    whole, before = (torch.load(tmp_path / name, weights_only=True) for name in ("state.pt", "state-before.pt"))
    assert before["steps"] < whole["steps"]
    damage(tmp_path / "state.pt", seed)
    found = read_state(tmp_path / "state.pt", run)
    said = "going on with what was saved before it" in capsys.readouterr().err
    assert found is not None and found.pop("taken_from") == ("state-before.pt" if said else "state.pt")
    expected = before if said else whole  # a turned bit may be one that says nothing, as a date within the archive
    assert same(found, expected)
    damage(tmp_path / "state-before.pt", seed | 1)
    if said:
        with pytest.raises(
            Cov3dError, match=r"state\.pt (is damaged|has changed since it was written); say --overwrite"
        ):
            read_state(tmp_path / "state.pt", run)


def same(a: object, b: object) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_state_holds_tensors_and_plain_values_only(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, CONVNEXT)
    assert torch.load(run / "state.pt", weights_only=True)["epochs"] == 3
