"""Training: what it writes, that it learns, that it repeats to the bit."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_slices
from fastai.learner import Learner, TrainEvalCallback
from fastai.optimizer import SGD
from pretended_gpu import pretended_gpu
from typer.testing import CliRunner

from cov3d import (
    Augmentation,
    LossSettings,
    Machine,
    NetSettings,
    Preprocessing,
    RunSettings,
    Training,
    load_model,
    read_study,
    train,
)
from cov3d.cli import app
from cov3d.errors import Cov3dError, SettingError, StudyError
from cov3d.training.accumulate import Accumulate
from cov3d.training.fit import advice
from cov3d.training.loaders import Loaders
from cov3d.training.order import Order
from cov3d.training.precision import pick_precision

TINY = RunSettings(
    task="both",
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, dropout=0.0, penultimate=8),
    training=Training(epochs=2, batch_size=4, learning_rate=1e-3, weights="none"),
)
ONE = Machine(workers=1, device="cpu")


def with_training(**values) -> RunSettings:
    return replace(TINY, training=replace(TINY.training, **values))


def fit(study: Path, folder: Path, settings: RunSettings = TINY, **values) -> Path:
    return train(read_study(study), settings, ONE, folder / "cache", folder / "run", **values).folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_what_it_promises(study: Path, tmp_path: Path):
    run = fit(study, tmp_path)
    assert {file.name for file in run.iterdir()} == {
        "config.json",
        "history.csv",
        "presence.safetensors",
        "severity.safetensors",
        "last.safetensors",
        "predictions.csv",
        "metrics.json",
        "curves.png",
        "state.pt",
    }
    config = json.loads((run / "config.json").read_text())
    assert config["training"]["epochs"] == 2
    assert config["severity_factor"] == 0.5
    assert {"torch", "fastai", "cov3d"} <= set(config["versions"])
    history = table(run / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert {"train_loss", "validation_loss", "presence_f1", "severity_f1", "severity_f1_mild"} <= set(history[0])
    assert len(table(run / "predictions.csv")) == 8
    assert "optimistic" in json.loads((run / "metrics.json").read_text())["note"]
    model = load_model(run / "severity.safetensors")
    assert (model.task, model.preprocessing) == ("severity", TINY.preprocessing)
    assert model.training["train_counts"] == {
        "non-covid": 4,
        "covid": 4,
        "mild": 1,
        "moderate": 1,
        "severe": 1,
        "critical": 0,
    }


def test_the_kept_epoch_is_the_best_one_and_among_equals_that_of_lowest_loss(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, with_training(epochs=4))
    ranks = [(float(row["presence_f1"]), -float(row["presence_log_loss"])) for row in table(run / "history.csv")]
    assert load_model(run / "presence.safetensors").training["epoch"] == ranks.index(max(ranks)) + 1
    assert load_model(run / "last.safetensors").training["epoch"] == 4


@pytest.mark.parametrize("task", ["presence", "severity"])
def test_a_task_keeps_its_own_model_only(study: Path, tmp_path: Path, task: str):
    run = fit(study, tmp_path, replace(TINY, task=task, training=replace(TINY.training, epochs=1)))
    assert {file.name for file in run.glob("*.safetensors")} == {f"{task}.safetensors", "last.safetensors"}


def test_same_seed_same_weights_to_the_bit(study: Path, tmp_path: Path):
    settings = replace(with_training(batch_size=2), net=replace(TINY.net, dropout=0.3))
    first, second, other = (
        load_model(
            fit(study, tmp_path / name, replace(settings, training=replace(settings.training, seed=seed)))
            / "last.safetensors"
        )
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    pairs = zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.net.state_dict()["head.0.weight"], other.net.state_dict()["head.0.weight"])


CONVNEXT = RunSettings(
    task="both",
    preprocessing=Preprocessing(width=32, depth=32),
    net=NetSettings("convnext-micro", base_width=4),
    training=Training(epochs=2, batch_size=2, learning_rate=1e-3, clip=5.0),
)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "constant"},
        {"schedule": "cosine", "optimizer": "adam"},
        {"ema": 0.0, "checkpoint_activations": True, "accumulate": 2},
    ],
    ids=["constant", "cosine", "checkpointed"],
)
def test_a_convnext_trains_and_repeats_to_the_bit(study: Path, tmp_path: Path, changes: dict):
    settings = replace(CONVNEXT, training=replace(CONVNEXT.training, **changes))
    first, second = (load_model(fit(study, tmp_path / name, settings) / "last.safetensors") for name in "ab")
    pairs = zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.training["loss"] == "balanced-ce"
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "a" / "run" / "history.csv")]
    assert (rates[-1] < 1e-3) == (changes.get("schedule") != "constant")


def test_what_is_kept_and_scored_is_the_average_of_the_weights(study: Path, tmp_path: Path):
    """A decay of nearly one leaves the average where the first step put it, whatever the epochs do."""
    weights = []
    for epochs in (1, 3):
        training = replace(CONVNEXT.training, ema=0.9999, epochs=epochs, schedule="constant")
        run = fit(study, tmp_path / f"{epochs}", replace(CONVNEXT, training=training))
        weights.append(load_model(run / "last.safetensors").net.head[0].weight)
    assert 0 < (weights[0] - weights[1]).abs().max() < 1e-5


def test_training_scans_are_cropped_from_larger_ones_and_validation_scans_are_not(study: Path, tmp_path: Path):
    augmentation = Augmentation(crop_from=40)
    training = replace(CONVNEXT.training, epochs=1)
    run = fit(study, tmp_path, replace(CONVNEXT, augmentation=augmentation, training=training))
    cached = {folder.name[:8]: len(list(folder.glob("*.pt"))) for folder in (tmp_path / "cache").iterdir()}
    assert cached == {"40x40x40": 8, "32x32x32": 8}
    assert load_model(run / "last.safetensors").preprocessing == CONVNEXT.preprocessing
    assert json.loads((run / "config.json").read_text())["augmentation"]["crop_from"] == 40


def test_a_convnext_is_refused_sides_under_32_voxels_before_any_work():
    with pytest.raises(SettingError, match="at least 32 voxels, and these are 16×32×32; raise --width or --depth"):
        replace(CONVNEXT, preprocessing=Preprocessing(width=32))


def test_training_overfits_eight_drawn_chests(tmp_path: Path):
    from cov3d.phantom import write_study
    from cov3d.results.infer import infer

    root = write_study(tmp_path / "study", scans=8, size=48, seed=1, annotated=1.0)
    settings = RunSettings(
        task="both",
        preprocessing=Preprocessing(width=32),
        net=NetSettings(base_width=8, dropout=0.0, penultimate=16),
        training=Training(epochs=40, batch_size=4, learning_rate=3e-3, weights="none"),
        augmentation=Augmentation(flip_width=0.0),
    )
    study = read_study(root)
    everything = replace(study, rows=tuple(replace(row, split="train") for row in study.rows))
    own = tuple(replace(row, split="validation", scan=f"again/{row.scan}") for row in study.rows)
    run = train(replace(everything, rows=everything.rows + own), settings, ONE, tmp_path / "cache", tmp_path / "run")
    answers = infer([root], [run.folder / "last.safetensors"], tmp_path / "p.csv", machine=ONE)
    truth = {row.path.resolve(): row for row in study.rows}
    for answer in answers:
        row = truth[Path(answer.path).resolve()]
        assert (answer.covid > 0.5) == bool(row.presence)
        if row.severity > 0:
            assert int(np.argmax(answer.severity)) + 1 == row.severity


def test_an_existing_run_is_not_overwritten_unasked(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, with_training(epochs=1))
    with pytest.raises(SettingError, match="holds a run already; say --resume to go on with it, --overwrite"):
        fit(study, tmp_path)
    (run / "notes.txt").write_text("mine")
    fit(study, tmp_path, with_training(epochs=1), overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"


def test_a_run_that_cannot_begin_leaves_the_old_one_alone(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, with_training(epochs=1))
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(Cov3dError, match=r"nowhere\.safetensors"):
        fit(study, tmp_path, with_training(weights="nowhere.safetensors"), overwrite=True)
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_run_that_fails_in_its_first_epoch_leaves_the_old_one_alone(study: Path, tmp_path: Path):
    run = fit(study, tmp_path, with_training(epochs=1))
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(Cov3dError, match="became nan"):
        fit(study, tmp_path, with_training(learning_rate=1e30), overwrite=True)
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_changed_cache_file_is_made_again_or_stops_the_run_in_a_sentence(study: Path, tmp_path: Path):
    from cov3d import fill_cache
    from cov3d.training.fit import advice
    from cov3d.training.loaders import CachedScans, ReadAhead

    rows = read_study(study).rows
    cache = fill_cache(rows, TINY.preprocessing, tmp_path / "cache", ONE)
    file = cache.folder / cache.entries[rows[0].scan]["file"]
    whole = file.read_bytes()
    file.write_bytes(b"changed")
    loader = ReadAhead(CachedScans(cache, rows).__getitem__, Order(len(rows), 1, shuffled=False), 2, False)
    assert len(list(loader)) == len(rows)
    assert file.read_bytes() == whole
    file.write_bytes(b"changed")
    shutil.rmtree(rows[0].path)
    with pytest.raises(Cov3dError) as caught, advice():
        list(loader)
    assert "\n" not in str(caught.value)
    assert "has changed since it was made, and the scan it was made from cannot be read" in str(caught.value)


def test_an_output_folder_that_cannot_be_made_is_named(study: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Cov3dError, match="file"):
        train(read_study(study), TINY, ONE, tmp_path / "cache", tmp_path / "file" / "run")


def test_a_failed_scan_is_left_out_and_named(study: Path, tmp_path: Path):
    for file in (study / "train" / "covid" / "ct_scan_1").iterdir():
        file.write_bytes(b"")
    run = train(read_study(study), with_training(epochs=1), ONE, tmp_path / "cache", tmp_path / "run")
    assert list(run.failures) == ["train/covid/ct_scan_1"]
    assert load_model(run.folder / "last.safetensors").training["train_scans"] == 7


def test_a_study_of_one_class_says_what_is_missing_before_it_preprocesses(tmp_path: Path):
    root = tmp_path / "study"
    for k in range(4):
        write_slices(root / "train" / "covid" / f"ct_scan_{k}", np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(StudyError, match="no training scan is non-covid"):
        fit(root, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_loss_that_is_no_number_stops_the_run(study: Path, tmp_path: Path):
    with pytest.raises(Cov3dError) as caught:
        fit(study, tmp_path, with_training(learning_rate=1e30, epochs=4))
    scans = r"(train/(non-)?covid/ct_scan_?\d, ){3}train/(non-)?covid/ct_scan_?\d"
    said = r"became nan in epoch 1, batch 2; see whether these scans are sound, lower --learning-rate, .*--skip-nan to leave"
    assert re.match(f"the loss of {scans} {said}", str(caught.value))


def test_the_command_says_it_in_one_sentence(study: Path, tmp_path: Path):
    words = ["train", study, "--learning-rate", 1e30, "--width", 32, "--base-width", 4, "--penultimate", 8]
    words += ["--workers", 1, "--device", "cpu", "--cache", tmp_path / "cache", "--output-dir", tmp_path / "run"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    said = r"error: the loss of .* became nan in epoch 1, batch \d; see whether these scans are sound, lower --learning-rate, .*"
    assert re.fullmatch(said, last)


@pytest.mark.parametrize(
    "wrapped",
    [
        "Exception occured in `Epochs` when calling event `after_batch`:\n\tthe disk: is full",
        "Caught Cov3dError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
        "cov3d.errors.Cov3dError: the disk: is full\n",
        "the disk: is full",
    ],
)
@pytest.mark.parametrize("kind", [Cov3dError, SettingError])
def test_what_libraries_put_before_a_sentence_is_taken_off(wrapped: str, kind: type[Cov3dError]):
    with pytest.raises(kind) as caught, advice():
        raise kind(wrapped)
    assert str(caught.value) == "the disk: is full" and type(caught.value) is kind


def test_answers_that_nothing_trained_are_said_to_say_nothing(study: Path, tmp_path: Path):
    settings = replace(with_training(epochs=1), task="severity", loss=LossSettings(severity_factor=1.0))
    for line in table(fit(study, tmp_path, settings) / "predictions.csv"):
        assert line["warning"] == "answers about presence say nothing: no model that gives them learnt it"
    for line in table(fit(study, tmp_path, with_training(epochs=1), overwrite=True) / "predictions.csv"):
        assert line["warning"] == ""


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_accumulated_batches_step_like_the_large_batch(batch_size: int):
    """Ten scans in steps of four, four, and the two that are left, whatever the batches."""
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    net = torch.nn.Linear(3, 1)
    expected = {name: value.clone() for name, value in net.named_parameters()}
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        error = x[rows] @ expected["weight"].T + expected["bias"] - y[rows]
        expected["weight"] = expected["weight"] - 0.1 * 2 * (error * x[rows]).mean(0)
        expected["bias"] = expected["bias"] - 0.1 * 2 * error.mean(0)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    learner = Learner(
        Loaders(batches, batches[:1], torch.device("cpu"), (Order(10, batch_size), Order(0, 1)), ([], [])),
        net,
        loss_func=torch.nn.MSELoss(),
        opt_func=partial(SGD, mom=0),
        wd=0,
        default_cbs=False,
        cbs=[TrainEvalCallback(), Accumulate(4 // batch_size)],
    )
    learner.fit(1, lr=0.1)
    for name, value in net.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_a_batch_that_a_gpu_cannot_count_is_refused_before_scans_are_preprocessed(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cov3d.training.train.fill_cache", lambda *given: pytest.fail("scans were preprocessed"))
    training = replace(TINY.training, batch_size=9, weights="none")
    settings = replace(TINY, net=NetSettings(), preprocessing=Preprocessing(width=320), training=training)
    with (
        pretended_gpu(),
        pytest.raises(SettingError, match=r"^a batch of 9 at 160×320×320 .* lower --batch-size to 8 "),
    ):
        train(read_study(study), settings, Machine(device="cuda"), tmp_path / "cache", tmp_path / "run")


def test_half_precision_is_for_gpus():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_precision("auto", cpu) == "fp32"
    assert pick_precision("fp32", gpu) == "fp32"
    assert pick_precision("fp16", gpu) == "fp16"
    with pytest.raises(SettingError, match="on a CPU leave it at auto"):
        pick_precision("fp16", cpu)


def test_running_out_of_gpu_memory_says_what_to_lower(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cov3d.training import loss

    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loss.JointLoss, "forward", full)
    with pytest.raises(Cov3dError, match="lower --batch-size"):
        fit(study, tmp_path)
