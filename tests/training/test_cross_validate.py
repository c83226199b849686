"""Cross-validation: each fold a run of its own, every scan answered by the one that has not seen it."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_study
from sklearn.metrics import f1_score

from cov3d import (
    Inference,
    LossSettings,
    Machine,
    NetSettings,
    Preprocessing,
    RunSettings,
    Saving,
    Training,
    cross_validate,
    evaluate,
    infer,
    load_model,
    read_study,
    train,
)
from cov3d.errors import Cov3dError, ModelError, SettingError, StudyError
from cov3d.results.models import find_models, load_models
from cov3d.scans.study import Study
from cov3d.shards import Shard
from cov3d.stopping import Stopped

SETTINGS = RunSettings(
    task="presence",
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, dropout=0.0, penultimate=8),
    training=Training(epochs=2, batch_size=4, learning_rate=1e-3),
)
ONE = Machine(workers=1, device="cpu")
NO_VIEWS, ALLOWED = Inference(tta=False), Inference(allow_missing=True)


ROOM = importlib.import_module("cov3d.training.cross_validate")  # cov3d.cross_validate is the function


def raising(error: BaseException) -> Callable[..., None]:
    """A function that raises whatever it is called with."""

    def function(*values: object) -> None:
        raise error

    return function


@pytest.fixture
def labelled(tmp_path: Path) -> Study:
    """Sixteen scans of two classes."""
    study = read_study(make_study(tmp_path / "study", per_class=4))
    return replace(study, rows=tuple(replace(row, split="", severity=-1) for row in study.rows))


def validated(study: Study, root: Path, settings: RunSettings = SETTINGS, **values) -> Path:
    return cross_validate(study, settings, ONE, 2, cache=root / "cache", output_dir=root / "cv", **values).folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_out_of_fold_answers_are_those_of_the_last_epoch_of_the_fold_that_held_them_out(
    labelled: Study, tmp_path: Path
):
    folder = validated(labelled, tmp_path)
    held = {line["scan"]: int(line["fold"]) for line in table(folder / "folds.csv")}
    answers = {line["scan"]: float(line["covid_probability"]) for line in table(folder / "out-of-fold.csv")}
    assert held.keys() == answers.keys() == {row.scan for row in labelled.rows}
    for fold in (0, 1):
        model = load_model(folder / f"fold-{fold}" / "presence.safetensors")
        assert model.training["epoch"] == 2
        rows = [row for row in labelled.rows if held[row.scan] == fold]
        paths = [row.path for row in rows]
        own = infer(paths, [folder / f"fold-{fold}"], tmp_path / f"{fold}.csv", machine=ONE, inference=NO_VIEWS)
        found = {Path(answer.path).resolve(): answer.covid for answer in own}
        for row in rows:
            assert found[row.path.resolve()] == pytest.approx(answers[row.scan], abs=1e-5)


def test_the_pooled_score_is_scikit_learns_and_its_spread_that_of_the_folds(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    truth = {row.scan: row.presence for row in labelled.rows}
    lines = table(folder / "out-of-fold.csv")
    called = [float(line["covid_probability"]) >= 0.5 for line in lines]
    expected = f1_score([truth[line["scan"]] for line in lines], called, average="macro")
    assert metrics["presence"]["macro_f1"] == pytest.approx(expected)
    folds = [json.loads((folder / f"fold-{k}" / "metrics.json").read_text())["presence"]["macro_f1"] for k in (0, 1)]
    assert metrics["presence"]["folds"] == pytest.approx(folds)
    assert metrics["presence"]["mean"] == pytest.approx(np.mean(folds))
    assert metrics["presence"]["sd"] == pytest.approx(np.std(folds, ddof=1))
    assert "did not choose" in metrics["note"] and metrics["lost"] == []


def test_where_the_best_epoch_is_kept_it_is_said(labelled: Study, tmp_path: Path):
    best = replace(SETTINGS, training=replace(SETTINGS.training, keep="best"))
    metrics = json.loads((validated(labelled, tmp_path, best) / "metrics.json").read_text())
    assert "also chose the epoch" in metrics["note"]


def test_folds_trained_one_by_one_are_the_same_and_the_last_to_finish_collects(labelled: Study, tmp_path: Path):
    whole = validated(labelled, tmp_path / "whole")
    with pytest.raises(Cov3dError, match="not trained yet: fold 0, fold 1"):
        validated(labelled, tmp_path, collect_only=True)
    for fold in (1, 0):
        assert not (tmp_path / "cv" / "metrics.json").exists()
        parts = validated(labelled, tmp_path, fold=fold)
    assert (parts / "out-of-fold.csv").read_text() == (whole / "out-of-fold.csv").read_text()
    for fold in (0, 1):
        nets = [load_model(folder / f"fold-{fold}" / "last.safetensors").net.state_dict() for folder in (whole, parts)]
        assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values(), strict=True))


@pytest.mark.parametrize("left", [(), ("config.json",), ("config.json", "history.csv", "presence.safetensors")])
def test_run_again_it_trains_only_what_is_missing_or_was_stopped(labelled: Study, tmp_path: Path, left: tuple):
    folder = validated(labelled, tmp_path)
    whole = (folder / "out-of-fold.csv").read_text()
    before = (folder / "fold-0" / "config.json").stat().st_mtime_ns
    for file in (folder / "fold-1").iterdir():
        if file.name not in left:
            file.unlink()
    (folder / "folds.csv").unlink()
    validated(labelled, tmp_path)
    assert (folder / "fold-0" / "config.json").stat().st_mtime_ns == before
    assert (folder / "out-of-fold.csv").read_text() == whole and (folder / "folds.csv").exists()


def test_a_fold_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(labelled: Study, tmp_path: Path):
    whole = validated(labelled, tmp_path)
    answers = (whole / "out-of-fold.csv").read_bytes()
    shutil.rmtree(whole)
    sessions = 0
    while True:
        sessions += 1
        try:
            run = validated(labelled, tmp_path, saving=Saving(max_hours=0.0))  # a step, and the time is up
            break
        except Stopped:
            assert sessions < 20
    assert sessions > 4 and (run / "out-of-fold.csv").read_bytes() == answers


def test_processes_that_share_the_folds_train_each_once(
    labelled: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = validated(labelled, tmp_path)
    answers = (whole / "out-of-fold.csv").read_bytes()
    shutil.rmtree(whole)
    for number in range(2):
        capsys.readouterr()
        run = validated(labelled, tmp_path, shard=Shard(number, 2))
        said = capsys.readouterr().err
        assert f"fold {number} of 0 to 1" in said and f"fold {1 - number} of 0 to 1" not in said
        assert (run / "out-of-fold.csv").exists() == (number == 1)
    assert (run / "out-of-fold.csv").read_bytes() == answers


def test_nothing_of_an_overwritten_cross_validation_stands_beside_the_new_one(
    labelled: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = validated(labelled, tmp_path)
    stopped = KeyboardInterrupt()
    monkeypatch.setattr(ROOM, "train_split", raising(stopped))
    with pytest.raises(KeyboardInterrupt):
        validated(labelled, tmp_path, overwrite=True)
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert names == {"cross-validation.json", "folds.csv"}


def test_folds_whose_plan_is_gone_are_nobody_knows_what(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    (folder / "cross-validation.json").unlink()
    with pytest.raises(SettingError, match=r"cross-validation\.json is gone; say --overwrite"):
        validated(labelled, tmp_path)
    assert (folder / "fold-0" / "metrics.json").exists()


def test_a_scan_that_cannot_be_read_has_a_row_and_fails_each_time(labelled: Study, tmp_path: Path):
    broken = labelled.rows[3]
    for file in broken.path.iterdir():
        file.write_bytes(b"")
    for _ in range(2):
        run = cross_validate(labelled, SETTINGS, ONE, 2, cache=tmp_path / "cache", output_dir=tmp_path / "cv")
        assert set(run.failures) == {broken.scan}
    rows = {line["scan"]: line for line in table(run.folder / "out-of-fold.csv")}
    assert len(rows) == 16 and "could not be read" in rows[broken.scan]["error"]


def test_what_is_not_learnt_is_not_scored(labelled: Study, tmp_path: Path):
    only = replace(SETTINGS, loss=LossSettings(severity_factor=0.0))
    metrics = json.loads((validated(labelled, tmp_path, only) / "metrics.json").read_text())
    assert "severity" not in metrics and metrics["presence"]["n"] == 16


def test_a_fold_none_of_whose_scans_can_be_read_says_so(labelled: Study, tmp_path: Path):
    half = replace(labelled, rows=tuple(replace(row, fold=k % 2) for k, row in enumerate(labelled.rows)))
    for row in half.rows:
        if row.fold == 1:
            for file in row.path.iterdir():
                file.write_bytes(b"")
    with pytest.raises(StudyError, match="no training scan"):  # the other fold has nothing to learn from
        validated(half, tmp_path)
    folder = validated(half, tmp_path, fold=1)
    metrics = json.loads((folder / "fold-1" / "metrics.json").read_text())
    assert "none of the scans held out could be read" in metrics["note"]


def test_the_tables_own_folds_are_held_out(labelled: Study, tmp_path: Path):
    dealt = replace(labelled, rows=tuple(replace(row, fold=k // 2 % 2) for k, row in enumerate(labelled.rows)))
    folder = validated(dealt, tmp_path)
    held = {line["scan"]: int(line["fold"]) for line in table(folder / "folds.csv")}
    assert held == {row.scan: row.fold for row in dealt.rows}


def test_out_of_fold_answers_are_not_called_answers_about_training_scans(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    notes = evaluate(folder / "out-of-fold.csv", labelled)["notes"]
    assert notes == ["each of these was answered by the fold that has not seen it"]


def test_scores_of_a_fold_that_is_trained_again_do_not_stay(
    labelled: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = validated(labelled, tmp_path)
    monkeypatch.setattr(ROOM, "train_split", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        validated(labelled, tmp_path, fold=0, overwrite=True)
    assert not (folder / "metrics.json").exists() and not (folder / "out-of-fold.csv").exists()


def test_a_fold_that_is_refused_to_be_trained_again_keeps_the_scores(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    before = [(folder / name).read_bytes() for name in ("metrics.json", "out-of-fold.csv")]
    with pytest.raises(SettingError, match="holds a run already"):
        validated(labelled, tmp_path, fold=0)
    assert [(folder / name).read_bytes() for name in ("metrics.json", "out-of-fold.csv")] == before


def test_a_run_does_not_take_the_place_of_a_fold(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path, fold=0)
    with pytest.raises(SettingError, match="lies in a cross-validation's folder"):
        train(labelled, SETTINGS, ONE, tmp_path / "cache", folder / "fold-0", overwrite=True)


def test_scans_without_a_number_of_a_fold_are_counted(
    labelled: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [replace(row, fold=None if k < 3 else k // 2 % 2) for k, row in enumerate(labelled.rows)]
    validated(replace(labelled, rows=tuple(rows)), tmp_path)
    said = capsys.readouterr().err
    assert "3 scans have no number of a fold" in said and "nothing else is learnt" not in said


def test_one_fold_is_none(labelled: Study, tmp_path: Path):
    with pytest.raises(SettingError, match="--folds 1 is out of range; expected 2 to 100"):
        cross_validate(labelled, SETTINGS, ONE, 1, cache=tmp_path / "cache", output_dir=tmp_path / "cv")


@pytest.mark.parametrize("besides", [{"fold": 0}, {"overwrite": True}])
def test_collecting_trains_nothing_so_what_trains_is_refused_beside_it(labelled: Study, tmp_path: Path, besides: dict):
    with pytest.raises(SettingError, match="--collect trains nothing"):
        validated(labelled, tmp_path, collect_only=True, **besides)


def test_settings_that_say_nothing_here_are_refused(labelled: Study, tmp_path: Path):
    held = replace(SETTINGS, training=replace(SETTINGS.training, validation_fraction=0.5))
    with pytest.raises(SettingError, match="--validation-fraction says nothing here"):
        validated(labelled, tmp_path, held)
    for settings in (held, replace(SETTINGS, training=replace(SETTINGS.training, keep="best"))):
        with pytest.raises(SettingError, match="--all-data holds no scans out"):
            train(labelled, settings, ONE, tmp_path / "cache", tmp_path / "run", all_data=True)


def test_a_patient_among_the_scans_that_stay_unseen_is_refused(labelled: Study, tmp_path: Path):
    rows = [
        replace(row, patient="7" if k in (0, 9) else "", split="validation" if k == 9 else "")
        for k, row in enumerate(labelled.rows)
    ]
    with pytest.raises(StudyError, match="1 patients have scans both"):
        validated(replace(labelled, rows=tuple(rows)), tmp_path)


def test_another_study_or_setting_does_not_go_into_the_same_folder(labelled: Study, tmp_path: Path):
    validated(labelled, tmp_path, fold=0)
    other = replace(SETTINGS, training=replace(SETTINGS.training, epochs=3))
    with pytest.raises(SettingError, match=r"other settings: epochs 2 there and 3 here"):
        validated(labelled, tmp_path, other, fold=1)
    with pytest.raises(SettingError, match="--fold 2 is not one of 0 to 1"):
        validated(labelled, tmp_path, fold=2)


def test_a_run_and_a_cross_validation_do_not_share_a_folder(labelled: Study, tmp_path: Path):
    train(labelled, SETTINGS, ONE, tmp_path / "cache", tmp_path / "cv")
    with pytest.raises(SettingError, match="holds a run of cov3d train"):
        validated(labelled, tmp_path)
    folder = validated(labelled, tmp_path / "other", fold=0)
    with pytest.raises(SettingError, match="holds a cross-validation"):
        train(labelled, SETTINGS, ONE, tmp_path / "cache", folder, overwrite=True)


# Answers of all folds


def test_all_folds_answer_and_a_lost_one_is_an_error_that_names_it(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    path = labelled.rows[0].path
    together = infer([path], [folder], tmp_path / "p.csv", machine=ONE)[0]
    alone = [infer([path], [folder / f"fold-{k}"], tmp_path / f"{k}.csv", machine=ONE)[0] for k in (0, 1)]
    assert together.models == 2
    assert together.covid == pytest.approx(np.mean([answer.covid for answer in alone]), abs=1e-6)
    (folder / "fold-1" / "presence.safetensors").unlink()
    with pytest.raises(ModelError, match=r"fold-1: this fold is missing .* --fold 1, or say --allow-missing"):
        infer([path], [folder], tmp_path / "q.csv", machine=ONE)
    with_one = infer([path], [folder], tmp_path / "q.csv", machine=ONE, inference=ALLOWED)[0]
    assert with_one.models == 1 and with_one.covid == pytest.approx(alone[0].covid)


def test_a_fold_that_cannot_be_read_is_an_error_too(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    file = folder / "fold-0" / "presence.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="fold-0"):
        load_models([folder], torch.device("cpu"))
    assert len(load_models([folder], torch.device("cpu"), allow_missing=True)) == 1


def test_a_model_that_is_not_the_folds_is_refused(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    kept = (folder / "fold-0" / "presence.safetensors").read_bytes()
    (folder / "fold-0" / "presence.safetensors").write_bytes((folder / "fold-1" / "presence.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"fold-0/presence.safetensors is not the model of this fold of 2.*--fold 0"):
        load_models([folder], torch.device("cpu"))
    (folder / "fold-0" / "presence.safetensors").write_bytes(kept)
    shutil.copytree(folder / "fold-1", folder / "fold-7")
    with pytest.raises(ModelError, match=r"fold-7/presence\.safetensors is not the model of this fold"):
        load_models([folder], torch.device("cpu"))


def test_where_one_epoch_is_kept_for_both_tasks_the_model_answers_once(tmp_path: Path):
    study = read_study(make_study(tmp_path / "study", per_class=4))
    rows = tuple(replace(row, split="") for row in study.rows)
    folder = validated(replace(study, rows=rows), tmp_path, replace(SETTINGS, task="both"))
    models = load_models([folder], torch.device("cpu"))
    assert [model.task for model in models] == ["both", "both"]
    answer = infer([rows[0].path], [folder], tmp_path / "p.csv", machine=ONE)[0]
    assert answer.models == 2


def test_without_a_name_an_unfinished_cross_validation_is_an_error(
    labelled: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    cross_validate(labelled, SETTINGS, ONE, 2, fold=0, cache="cache")
    with pytest.raises(ModelError, match="outputs/presence/fold-1: this fold is missing"):
        find_models([])
    assert [file.as_posix() for file in find_models([], allow_missing=True)] == [
        "outputs/presence/fold-0/presence.safetensors"
    ]


def test_a_fold_that_is_left_out_is_left_out_where_it_has_a_model_too(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    (folder / "fold-1" / "metrics.json").unlink()
    assert [file.parent.name for file in find_models([folder], allow_missing=True)] == ["fold-0"]


def test_a_lost_fold_is_noticed_where_the_plan_is_gone_too(labelled: Study, tmp_path: Path):
    folder = validated(labelled, tmp_path)
    (folder / "cross-validation.json").unlink()
    assert len(load_models([folder], torch.device("cpu"))) == 2
    shutil.rmtree(folder / "fold-0")
    with pytest.raises(ModelError, match=r"fold-0: this fold, one of 2, is missing.*--allow-missing"):
        load_models([folder], torch.device("cpu"))
    assert len(load_models([folder], torch.device("cpu"), allow_missing=True)) == 1
    assert len(load_models([folder / "fold-1"], torch.device("cpu"))) == 1  # this one is what was asked for


# All data


def test_all_data_trains_on_every_labelled_scan_and_scores_nothing(labelled: Study, tmp_path: Path):
    rows = [replace(row, split="validation" if k % 4 == 0 else "") for k, row in enumerate(labelled.rows)]
    study = replace(labelled, rows=tuple(rows))
    run = train(study, SETTINGS, ONE, tmp_path / "cache", tmp_path / "run", all_data=True).folder
    model = load_model(run / "presence.safetensors")
    assert (model.training["train_scans"], model.training["validation_scans"]) == (16, 0)
    assert model.training["epoch"] == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == {"presence": {"epoch": 2}, "chosen": "everything", "note": metrics["note"]}
    assert "there is no score" in metrics["note"] and model.training["all_data"]
    assert table(run / "predictions.csv") == []
    infer([row.path for row in study.rows], [run], tmp_path / "p.csv", machine=ONE, inference=NO_VIEWS)
    notes = evaluate(tmp_path / "p.csv", study)["notes"]
    assert notes == ["a model that answered was trained on all labelled scans of this study: this is memory, no score"]
