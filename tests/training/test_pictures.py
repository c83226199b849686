"""A 2D network learns pictures in class folders, goes on where it was stopped, and its weights become 3D."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from shapes import CPU, SMALL, draw_shapes
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from cov3d.cli import app
from cov3d.config import Augmentation, Machine, NetSettings, Preprocessing, Training
from cov3d.config.pictures import PICTURE_TRAINING, PictureSettings, check_pictures, picture_ema
from cov3d.errors import Cov3dError, SettingError, StudyError
from cov3d.nets.build import build
from cov3d.nets.flat import build_flat
from cov3d.nets.weights import start_from
from cov3d.stopping import Stopped
from cov3d.tables import read_table
from cov3d.training.epochs import Epochs
from cov3d.training.fit import advice
from cov3d.training.order import Place
from cov3d.training.pictures import matrices_and_vectors, pretrain_pictures
from cov3d.training.pictures_epochs import rate_at
from cov3d.training.pictures_found import find_pictures, open_picture
from cov3d.training.pictures_varied import PictureFiles, Readers, plain

torch.set_num_threads(1)

NET = NetSettings(architecture="convnext-micro", base_width=8)


def training(**said: Any) -> Training:
    return Training(**{**PICTURE_TRAINING, "epochs": 2, "batch_size": 8, "learning_rate": 2e-3, **said})


def pretrain(folder: Path, output: Path, settings: PictureSettings = SMALL, **said: Any):
    again = {name: said.pop(name) for name in ("resume", "overwrite") if name in said}
    net, machine = said.pop("net", NET), said.pop("machine", CPU)
    return pretrain_pictures(folder, settings, training(**said), net, machine, output, **again)


def test_shapes_are_learnt_and_the_weights_begin_a_3d_network(tmp_path: Path):
    draw_shapes(tmp_path / "shapes", each=40)
    run = pretrain(
        tmp_path / "shapes", tmp_path / "run", PictureSettings(side=32, rate_batch=0, least_crop=0.6), epochs=14
    )
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.75  # by chance .33
    assert metrics["pictures"] == 24 and "chose nothing" in metrics["note"]
    columns, rows = read_table(run.folder / "history.csv")
    assert columns == ["epoch", "learning_rate", "train_loss", "validation_loss", "left_out", "accuracy", "seconds"]
    assert [int(row["epoch"]) for row in rows] == list(range(1, 15))
    assert float(rows[-1]["accuracy"]) == metrics["accuracy"]
    config = json.loads((run.folder / "config.json").read_text())
    assert config["pictures"]["classes"] == ["circle", "cross", "square"] and config["net"] == asdict(NET)

    file = run.folder / "weights.safetensors"
    with safetensors.safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["pretraining"])
    assert about["net"]["architecture"] == "convnext-micro" and about["accuracy"] == metrics["accuracy"]
    for how in ("full", "1g", "2g"):
        report = start_from(build(NET), str(file), NET, how)
        assert set(report.unused) == {"head.weight", "head.bias"} and len(report.inflated) == 1 + 3 + 15


def test_a_resnet_is_learnt_and_inflated_too(tmp_path: Path):
    net = NetSettings(base_width=4)
    run = pretrain(draw_shapes(tmp_path / "shapes"), tmp_path / "run", net=net, ema=0.0, accumulate=2, clip=1.0)
    file = str(run.folder / "weights.safetensors")
    assert set(start_from(build(net), file, net, "full", "sum").unused) == {"fc.bias", "fc.weight"}


def test_the_kept_weights_are_the_average_and_score_what_is_written(tmp_path: Path):
    folder = draw_shapes(tmp_path / "shapes")
    run = pretrain(folder, tmp_path / "run", epochs=3)
    net = build_flat(NET, 3).eval()
    net.load_state_dict(safetensors.torch.load_file(run.folder / "weights.safetensors"))
    found = find_pictures(folder, training(), CPU)
    files = PictureFiles(found.validation, plain(SMALL))
    images, labels = zip(*(files[Place(0, row)] for row in range(len(files))), strict=True)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(net(torch.stack(images)), torch.tensor(labels))
    assert json.loads((run.folder / "metrics.json").read_text())["validation_loss"] == pytest.approx(
        float(loss), rel=1e-5
    )
    state = torch.load(run.folder / "state.pt", weights_only=True)
    assert not torch.equal(state["parts"]["network"]["head.weight"], net.head.weight)  # type: ignore[union-attr]


class Crash(Exception):
    """Whatever ends a run."""


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("end", [crash, lambda: signal.raise_signal(signal.SIGTERM)], ids=["crash", "signal"])
@pytest.mark.parametrize("net", [NET, NetSettings(base_width=4)], ids=["convnext", "resnet"])
def test_a_run_that_was_stopped_ends_in_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch, listening: None, net: NetSettings, end: Callable[[], None]
):
    folder = draw_shapes(tmp_path / "shapes")
    whole = pretrain(folder, tmp_path / "whole", net=net, epochs=4).folder

    opened = 0

    def stop_in_epoch_three(path: Path) -> Image.Image:
        nonlocal opened
        opened += 1
        if opened == 2 * 36 + 10:  # an epoch trains on 30, in batches of 8 to 6, and scores 6
            end()
        return open_picture(path)

    monkeypatch.setattr("cov3d.training.pictures_varied.open_picture", stop_in_epoch_three)
    with pytest.raises((Crash, Stopped)):
        pretrain(folder, tmp_path / "stopped", net=net, epochs=4)
    stopped = tmp_path / "stopped"
    assert len(read_table(stopped / "history.csv")[1]) == 2 and not (stopped / "weights.safetensors").exists()
    assert torch.load(stopped / "state.pt", weights_only=True)["batches"] == (0 if end is crash else 2)
    torch.rand(7)  # whatever was drawn between
    pretrain(folder, stopped, net=net, epochs=4, resume=True)
    assert (stopped / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    ours, theirs = (
        [{name: cell for name, cell in row.items() if name != "seconds"} for row in read_table(run / "history.csv")[1]]
        for run in (stopped, whole)
    )
    assert ours == theirs


def test_a_finished_run_resumed_is_as_it_was_and_another_is_refused(tmp_path: Path):
    folder = draw_shapes(tmp_path / "shapes", each=5)
    run = pretrain(folder, tmp_path / "run").folder
    before = (run / "weights.safetensors").read_bytes()
    pretrain(folder, run, resume=True)
    assert (run / "weights.safetensors").read_bytes() == before
    with pytest.raises(SettingError, match="other settings"):
        pretrain(folder, run, resume=True, epochs=3)
    with pytest.raises(SettingError, match=r"holds a run already; say .*--overwrite"):
        pretrain(folder, run)
    begun = pretrain(folder, tmp_path / "new", resume=True).folder  # stopped before its first epoch had ended
    assert (begun / "weights.safetensors").read_bytes() == before
    (folder / "circle" / "0.png").unlink()
    with pytest.raises(SettingError, match="other settings, scans, masks or processes"):
        pretrain(folder, run, resume=True)
    pretrain(folder, run, overwrite=True)


def test_pictures_left_out_are_said_and_listed(tmp_path: Path, capsys):
    folder = draw_shapes(tmp_path / "shapes", each=8)
    (folder / "cross" / "3.png").write_bytes(b"")
    run = pretrain(folder, tmp_path / "run", epochs=1)
    assert run.failures == {"cross/3.png": "is empty (zero bytes); copy it again"}
    assert "note: 1 picture left out (cross/3.png is empty" in capsys.readouterr().err
    assert read_table(run.folder / "failures.csv")[1][0]["picture"] == "cross/3.png"


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path):
    with pytest.raises(
        Cov3dError, match=r"the loss of .*, and 3 more became nan in epoch 1, batch 2; .*lower --learning-rate"
    ):
        pretrain(draw_shapes(tmp_path / "shapes"), tmp_path / "run", learning_rate=1e30)


def test_the_command_says_it_in_one_sentence(tmp_path: Path):
    words = ["pretrain", draw_shapes(tmp_path / "shapes"), "--method", "imagenet", "--learning-rate", 1e30]
    words += ["--architecture", "convnext-micro", "--base-width", 8, "--side", 32, "--epochs", 2, "--batch-size", 8]
    words += ["--workers", 1, "--device", "cpu", "--output-dir", tmp_path / "run"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 1
    said = r"error: the loss of \w+/\d+\.png, .*, and 3 more became nan in epoch 1, batch 2; see whether these scans are sound, "
    said += "lower --learning-rate, say --clip 5, or --precision fp32, or --skip-nan to leave such steps out"
    assert re.fullmatch(said, result.stderr.splitlines()[-1])


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(StudyError, match="holds no pictures"):
        pretrain(tmp_path / "pictures", tmp_path / "pretrained" / "run")
    assert not (tmp_path / "pretrained").exists()


# Processes that read


def test_it_does_not_matter_how_many_processes_read(tmp_path: Path):
    folder = draw_shapes(tmp_path / "shapes")
    runs = [
        pretrain(folder, tmp_path / str(workers), machine=Machine(workers=workers, device="cpu")) for workers in (1, 2)
    ]
    one, two = ((run.folder / "weights.safetensors").read_bytes() for run in runs)
    assert one == two


@pytest.mark.parametrize("killed", [False, True])
def test_a_signal_to_all_processes_saves_first_and_a_killed_one_is_said(
    tmp_path: Path, monkeypatch, listening: None, killed: bool
):
    folder = draw_shapes(tmp_path / "shapes")
    seen = []

    def after_batch(self):
        seen.append(1)
        # The second batch of the second epoch, of 8 + 2 each: both readers are at work, and more is left than they read ahead.
        if len(seen) == 12:
            for reader in multiprocessing.active_children():
                os.kill(reader.pid, signal.SIGKILL if killed else signal.SIGTERM)
                if killed:  # until its end is told: here, and not within whatever comes next, pytest included
                    wait([reader.sentinel])
            if not killed:
                signal.raise_signal(signal.SIGTERM)
        whole(self)

    whole = Epochs.after_batch
    monkeypatch.setattr(Epochs, "after_batch", after_batch)
    kind, said = (Cov3dError, "was killed .*--resume") if killed else (Stopped, "stopped by SIGTERM after batch")
    with pytest.raises(kind, match=said) as caught:
        pretrain(folder, tmp_path / "run", epochs=3, batch_size=4, machine=Machine(workers=2, device="cpu"))
    assert "\n" not in str(caught.value)
    pretrain(folder, tmp_path / "run", epochs=3, batch_size=4, resume=True)
    whole_run = pretrain(folder, tmp_path / "whole", epochs=3, batch_size=4).folder
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (whole_run / "weights.safetensors").read_bytes()


def test_a_reader_that_dies_while_it_hands_over_is_said(monkeypatch: pytest.MonkeyPatch):
    def torn(self):
        yield 1
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(DataLoader, "__iter__", torn)
    with pytest.raises(Cov3dError, match=r"was killed .*--resume"), advice():
        list(Readers([1]))


FULL = r"^/dev/shm, through which .* is full; .*--shm-size 8g.*--resume"
KILLED = r"^a process that reads pictures was killed .*--resume"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)", FULL),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of",
            FULL,
        ),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", KILLED),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", KILLED),
        ("Pin memory thread exited unexpectedly", KILLED),
    ],
)
def test_what_became_of_readers_is_said(text: str, said: str):
    with pytest.raises(Cov3dError, match=said), advice():
        raise RuntimeError(text)


# The schedule and the settings


def test_the_learning_rate_rises_and_falls_as_worked_by_hand():
    """Four batches an epoch, two epochs of warm-up, ten in all, from 8 to 1."""
    rates = [rate_at(k / 4, 1 / 4, epochs=10, warmup=2, highest=8.0, final=1.0) for k in range(40)]
    assert rates[:8] == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])
    assert rates[8] == 8
    assert rates[24] == pytest.approx(4.5)  # halfway down
    assert rates[16] == pytest.approx(1 + 7 * (1 + math.sqrt(0.5)) / 2)  # a quarter
    assert 1 < rates[39] < 1.02 and rates[8:] == sorted(rates[8:], reverse=True)
    assert rate_at(0, 0.25, epochs=10, warmup=0, highest=8.0, final=1.0) == 8


def test_the_recipe_is_the_published_one():
    settings, published = PictureSettings(), Training(**PICTURE_TRAINING, accumulate=32)
    assert settings.highest_rate(published) == 4e-3  # for 128 × 32 pictures a step
    assert settings.highest_rate(Training(**PICTURE_TRAINING)) == pytest.approx(4e-3 / 32)
    assert settings.highest_rate(Training(**PICTURE_TRAINING), processes=32) == 4e-3
    assert PictureSettings(rate_batch=0).highest_rate(Training(**PICTURE_TRAINING)) == 4e-3
    assert settings.warmup(300) == 20 and settings.warmup(30) == 2
    assert picture_ema(published, 300 * 313) == 0.9999
    assert picture_ema(published, 800) == pytest.approx(0.99)
    assert picture_ema(Training(ema=0.5), 800) == 0.5
    check_pictures(settings, published, NetSettings(architecture="convnext-tiny"))


def test_vectors_do_not_decay():
    matrices, vectors = matrices_and_vectors(build_flat(NET, 3))
    assert all(p.dim() in (2, 4) for p in matrices) and all(p.dim() == 1 for p in vectors)
    assert len(matrices) + len(vectors) == len(list(build_flat(NET, 3).parameters()))


def test_no_option_of_pictures_is_another_groups():
    def names(group: Any) -> set[str]:
        return {f.name for f in fields(group) if not is_dataclass(f.type)}

    others = [Training, NetSettings, Augmentation, Preprocessing, Machine]
    assert not any(names(PictureSettings) & names(group) for group in others)


@pytest.mark.parametrize(
    "settings, said, net, cause",
    [
        ({"warmup_epochs": 2.0}, {}, {}, "--warmup-epochs 2 leaves nothing of 2 epochs"),
        ({}, {"schedule": "1cycle"}, {}, "--schedule 1cycle is not for pictures"),
        (
            {"rate_batch": 4096},
            {"learning_rate": 1e-5},
            {},
            "--final-rate 1e-06 is above the highest learning rate, 1.95e-08",
        ),
        ({}, {"weights": "w.pt"}, {}, "--weights says nothing"),
        ({}, {"keep": "best"}, {}, "--keep best says nothing"),
        ({}, {}, {"dropout": 0.1}, "--dropout says nothing"),
        ({}, {}, {"architecture": "mc3-18"}, "--architecture mc3-18 has no 2D weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, said: dict, net: dict, cause: str):
    with pytest.raises(SettingError) as caught:
        check_pictures(PictureSettings(**{**asdict(SMALL), **settings}), training(**said), NetSettings(**net))
    assert cause in str(caught.value)


def test_a_side_below_32_is_refused():
    with pytest.raises(SettingError, match="--side 31 is out of range; expected 32 to 1024"):
        PictureSettings(side=31)
