"""Train a network for each fold, and score every scan by the one that has not seen it: ``cov3d cross-validate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cov3d.commit import commit_json
from cov3d.config import Machine, RunSettings, Saving, recorded
from cov3d.console import few, say
from cov3d.errors import Cov3dError, SettingError
from cov3d.metrics import score_presence, score_severity
from cov3d.nets.inputs import device_of_share
from cov3d.predictions import Prediction, read_predictions, write_predictions
from cov3d.runs import (
    CONFIG,
    FINISHED,
    FOLDS,
    MOST_FOLDS,
    OUT_OF_FOLD,
    PLAN,
    PREDICTIONS,
    STATE,
    clear_run,
    fold_folder,
)
from cov3d.scans.study import Row, Study
from cov3d.shards import WHOLE, Shard
from cov3d.training.folds import Folds, deal
from cov3d.training.keeper import NOTES
from cov3d.training.session import Session
from cov3d.training.train import Run, prepare_study, train_split

LOST = "could not be read when its fold was trained; see failures.csv in the cache"


def cross_validate(
    study: Study,
    settings: RunSettings | None = None,
    machine: Machine | None = None,
    folds: int = 5,
    fold: int | None = None,
    cache: str | Path = "cache",
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    collect_only: bool = False,
    saving: Saving | None = None,
    shard: Shard = WHOLE,
) -> Run:
    """Train every fold, or the one that is named, in a folder of its own; the last to finish scores all of them.

    Each fold keeps its last epoch, unless ``--keep best``. Folds follow from the study and the seed, so that they can be
    trained one by one, on several machines; ``shard`` says which of them this process trains, each by itself. A fold that
    was stopped goes on where it was saved last.

    Raises:
        SettingError: no such fold, or another cross-validation in its folder.
        StudyError: a class with fewer patients than folds.
        Stopped: a signal, or the end of its time; all is saved.
        Cov3dError: nothing to collect yet.
    """
    machine = machine or Machine()
    here = Session(device_of_share(machine.device), saving=saving or Saving())
    settings = settings or RunSettings()
    if collect_only and (fold is not None or overwrite):
        raise SettingError("--collect trains nothing, so --fold and --overwrite say nothing beside it; leave them out")
    settings = _settled(settings, folds, fold)
    study = prepare_study(study, settings)
    dealt = deal(study.rows, folds, settings.training.seed)
    folder = Path(output_dir or f"outputs/{settings.task}")
    _announce(dealt)
    _plan(folder, dealt, study, settings, overwrite and fold is None and not collect_only)
    asked = [] if collect_only else shard.of(range(folds)) if fold is None else [fold]
    failures: dict[str, str] = {}
    for number in asked:
        if fold is None and _is_finished(folder, number):
            say(f"fold {number} is trained already")
        else:
            failures |= _train_fold(folder, dealt, number, study, settings, machine, cache, here, overwrite).failures
    missing = [number for number in range(folds) if not _is_finished(folder, number)]
    if not missing:
        failures |= collect(folder, dealt, settings)
    elif collect_only:
        raise Cov3dError(f"{folder}: not trained yet: {few([f'fold {number}' for number in missing])}")
    return Run(folder, failures)


def _train_fold(
    folder: Path,
    folds: Folds,
    number: int,
    study: Study,
    settings: RunSettings,
    machine: Machine,
    cache: str | Path,
    here: Session,
    overwrite: bool,
) -> Run:
    """Train one fold, or go on with it."""
    say(f"fold {number} of 0 to {folds.count - 1}")
    own = fold_folder(folder, number)
    stopped = not overwrite and not _is_finished(folder, number)
    here = here.resumed(stopped and (own / STATE).exists())
    overwrite = overwrite or (stopped and not here.resume)
    for name in (FINISHED, OUT_OF_FOLD) if overwrite else ():  # scores of the fold that was there before
        (folder / name).unlink(missing_ok=True)
    about = {"fold": number, "folds": folds.count}
    return train_split(study, folds.split(number), settings, machine, cache, own, here, overwrite, about)


def _settled(settings: RunSettings, folds: int, fold: int | None) -> RunSettings:
    """The settings, the last epoch kept where nothing else is said.

    Raises:
        SettingError: what says nothing here.
    """
    if not 2 <= folds <= MOST_FOLDS:
        raise SettingError(f"--folds {folds} is out of range; expected 2 to {MOST_FOLDS}")
    if fold is not None and not 0 <= fold < folds:
        raise SettingError(f"--fold {fold} is not one of 0 to {folds - 1}")
    if settings.training.validation_fraction is not None:
        raise SettingError("--validation-fraction says nothing here: each fold holds its own scans out; leave it out")
    if settings.training.keep != "auto":
        return settings
    return replace(settings, training=replace(settings.training, keep="last"))


def _is_finished(folder: Path, number: int) -> bool:
    return (fold_folder(folder, number) / FINISHED).exists()


def collect(folder: Path, folds: Folds, settings: RunSettings) -> dict[str, str]:
    """Pool the folds' answers: write ``out-of-fold.csv`` and ``metrics.json``, say the scores, return the scans without one.

    Raises:
        Cov3dError: a fold's predictions are of other scans than it holds out.
    """
    answers: dict[str, Prediction] = {}
    for number in range(folds.count):
        path = fold_folder(folder, number) / PREDICTIONS
        held = {row.scan for row in folds.split(number).validation}
        found = {prediction.scan: prediction for prediction in read_predictions(path)}
        if not found.keys() <= held:
            raise Cov3dError(
                f"{path}: holds scans that fold {number} does not hold out; say --fold {number} --overwrite to train it again"
            )
        answers |= found
    rows = [row for row in folds.rows if row.scan in answers]
    lost = {row.scan: LOST for row in folds.rows if row.scan not in answers}
    failed = [Prediction(scan, scan, error=cause) for scan, cause in lost.items()]
    write_predictions(folder / OUT_OF_FOLD, [*(answers[row.scan] for row in rows), *failed])
    chosen = {
        json.loads((fold_folder(folder, k) / FINISHED).read_text(encoding="utf-8"))["chosen"]
        for k in range(folds.count)
    }
    learnt = [task for task, factor in (("presence", 1.0), ("severity", 0.0)) if settings.severity_factor != factor]
    scores = {task: _scores(task, rows, answers, folds) for task in learnt}
    metrics = {
        **scores,
        "scans": len(rows),
        "lost": sorted(lost),
        "note": NOTES["best" if "best" in chosen else "last"],
    }
    commit_json(folder / FINISHED, metrics)
    for task in learnt:
        say(_sentence(task, scores[task]))
    say(f"note: {metrics['note']}")
    return lost


def _scores(task: str, rows: Sequence[Row], answers: dict[str, Prediction], folds: Folds) -> dict[str, Any]:
    """Scores of the pooled answers of a task, and macro F1 of each fold with mean and standard deviation."""
    pooled = _score(task, rows, answers)
    numbers = dict(zip((row.scan for row in folds.rows), folds.numbers, strict=True))
    each = [
        _score(task, [row for row in rows if numbers[row.scan] == fold], answers)["macro_f1"]
        for fold in range(folds.count)
    ]
    known = [f1 for f1 in each if f1 is not None]
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {**pooled, "folds": each, "mean": float(np.mean(known)) if known else None, "sd": spread}


def _score(task: str, rows: Sequence[Row], answers: dict[str, Prediction]) -> dict[str, Any]:
    if task == "presence":
        return score_presence(np.array([row.presence for row in rows]), np.array([answers[r.scan].covid for r in rows]))
    severity = np.array([answers[row.scan].severity for row in rows]).reshape(-1, 4)
    return score_severity(np.array([row.severity for row in rows]), severity)


def _sentence(task: str, scores: dict[str, Any]) -> str:
    if scores["macro_f1"] is None:
        return f"{task}: no scan has a label"
    spread = f"; over folds {scores['mean']:.4f} ± {scores['sd']:.4f}" if scores["sd"] is not None else ""
    return f"{task}: macro F1 {scores['macro_f1']:.4f} of {scores['n']} scans out of fold{spread}"


def _announce(folds: Folds) -> None:
    for row in folds.table():
        say(", ".join(f"{name} {value}" for name, value in row.items()))


def _plan(folder: Path, folds: Folds, study: Study, settings: RunSettings, overwrite: bool) -> None:
    """Write what is cross-validated, or see that it is the same that stands there.

    Raises:
        SettingError: it is another.
    """
    plan = {
        "folds": folds.count,
        "task": settings.task,
        "study": study.fingerprint,
        "held_out": folds.table(),
        "settings": recorded(settings),
    }
    path = folder / PLAN
    if (folder / CONFIG).exists():
        raise SettingError(f"{folder} holds a run of cov3d train; name another --output-dir")
    if overwrite:
        _clear(folder)
    if path.exists() and (differing := _differences(json.loads(path.read_text(encoding="utf-8")), plan)):
        raise SettingError(
            f"{folder} holds a cross-validation with other settings: {few(differing)}; say what it was begun with, or "
            "name another --output-dir"
        )
    if not path.exists() and any(folder.glob(f"fold-*/{CONFIG}")):
        raise SettingError(f"{folder} holds folds of nobody knows what: {PLAN} is gone; say --overwrite without --fold")
    folds.write(folder / FOLDS)
    commit_json(path, plan)


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two plans, by name, as it is there and here."""
    if isinstance(here, dict) and isinstance(there, dict):
        return [text for key in here for text in _differences(there.get(key), here[key], key)]
    if there == json.loads(json.dumps(here)):
        return []
    return [name if isinstance(here, list) else f"{name} {there} there and {here} here"]


def _clear(folder: Path) -> None:
    """Take an earlier cross-validation away, its scores first: nothing of it may stand beside another."""
    for name in (FINISHED, OUT_OF_FOLD, PLAN):
        (folder / name).unlink(missing_ok=True)
    for fold in folder.glob("fold-*"):
        (fold / FINISHED).unlink(missing_ok=True)
        clear_run(fold)
        (fold / STATE).unlink(missing_ok=True)
