"""Scores of predictions against a study's labels: ``cov3d evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cov3d.commit import as_written
from cov3d.console import few
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN
from cov3d.metrics import chance, interval, score_presence, score_severity
from cov3d.predictions import Prediction, read_predictions
from cov3d.results.provenance import learnt_wholly, place
from cov3d.runs import OUT_OF_FOLD, PLAN
from cov3d.scans.dicom_files import ADDRESS
from cov3d.scans.read import is_dicom_scan
from cov3d.scans.study import TRAIN, VALIDATION, Row, Study


def evaluate(predictions: str | Path, study: Study) -> dict[str, Any]:
    """Score a table of predictions: macro F1 with its interval and chance's, F1 of each class, confusion, of both tasks.

    ``asked`` counts the labelled scans, or series of them, of the splits that the table is about: none drops out unseen.

    Raises:
        StudyError: scans that the study does not have, or the same scan twice.
        Cov3dError: no scan has both an answer and a label.
    """
    path = Path(predictions)
    pairs = match_rows(read_predictions(path), study, path)
    answered = [(p, row) for p, row in pairs if p.covid is not None]
    if not any(row.presence != UNKNOWN for _, row in answered):
        raise Cov3dError(f"{path}: no scan has both an answer here and a label in {study.source}")
    labelled = sum(row.presence != UNKNOWN for _, row in answered)
    found = [row for _, row in pairs]
    result: dict[str, Any] = {"asked": _asked(found, study), "answered": labelled, "notes": _notes(found, study, path)}
    result["presence"] = _presence(answered)
    result["severity"] = _severity(answered)
    return result


def _asked(found: Sequence[Row], study: Study) -> int:
    """How many labelled scans, or series of scans, there are in the splits of those that were found."""
    splits, paths = {row.split for row in found}, {row.path for row in found}
    missing = [row for row in study.rows if row.split in splits and row.path not in paths]
    return sum(row.presence != UNKNOWN for row in (*found, *missing))


def match_rows(predictions: Sequence[Prediction], study: Study, source: Path) -> list[tuple[Prediction, Row]]:
    """Each prediction with its scan in the study: by the path on disk; if that is not there, by its name in the study.

    A path that is there but not in the study is another scan, however alike it is called. One series of a DICOM scan
    (``folder#2``) that is not in the study by itself has a row of its own with the labels of its scan (``folder``), as
    with ``--series all`` in training.
    """
    find = _finder(study)
    pairs: dict[str, tuple[Prediction, Row]] = {}
    lost: list[str] = []
    for prediction in predictions:
        path = Path(prediction.path or prediction.scan)
        row = find(path)
        if row is None:
            lost.append(path.as_posix())
        elif row.scan in pairs:
            raise StudyError(f"{source}: {row.scan} is predicted twice; keep one row of it")
        else:
            pairs[row.scan] = (prediction, row)
    if lost:
        raise StudyError(f"{source}: {len(lost)} scans are not in the study {study.source}: {few(lost)}")
    _check_parts([row for _, row in pairs.values()], study, source)
    return list(pairs.values())


def _finder(study: Study) -> Callable[[Path], Row | None]:
    """A function that gives the row of a path."""
    by_path = {place(row.path): row for row in study.rows}
    by_name = {as_written(row.scan).strip(): row for row in study.rows}

    def find(path: Path) -> Row | None:
        row = by_path.get(place(path)) or (None if _is_there(path) else by_name.get(path.as_posix()))
        address = ADDRESS.fullmatch(path.name)
        if row or address is None or _is_there(path):
            return row
        whole = find(path.with_name(address["source"]))
        if whole is None or not is_dicom_scan(whole.path):
            return None
        return replace(whole, scan=f"{whole.scan}#{address['series']}")  # its path stays, and tells of which scan it is

    return find


def _check_parts(found: Sequence[Row], study: Study, source: Path) -> None:
    """Raise a StudyError if a scan is predicted as such, and one of its series besides."""
    split, names = _split(found, study), {row.scan for row in study.rows}
    if both := [row.scan for row in found if row.scan in names and row.path in split]:
        raise StudyError(f"{source}: {few(both)} predicted both whole and by series; keep the one or the other")


def _split(found: Sequence[Row], study: Study) -> set[Path]:
    """Scans of the study of which single series were found."""
    names = {row.scan for row in study.rows}
    return {row.path for row in found if row.scan not in names}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no disk has names so long
        return False


def _presence(answered: Sequence[tuple[Prediction, Row]]) -> dict[str, Any]:
    pairs = [(p, row) for p, row in answered if row.presence != UNKNOWN]
    truth = np.array([row.presence for _, row in pairs])
    called = np.array([p.cells()["presence"] == PRESENCE[1] for p, _ in pairs], dtype=int)
    scores = score_presence(truth, np.array([p.covid for p, _ in pairs]), np.array([p.threshold for p, _ in pairs]))
    return _with_interval(scores, truth, called)


def _severity(answered: Sequence[tuple[Prediction, Row]]) -> dict[str, Any]:
    pairs = [(p, row) for p, row in answered if row.severity != UNKNOWN]
    truth = np.array([row.severity for _, row in pairs], dtype=int)
    probabilities = np.array([p.severity for p, _ in pairs]).reshape(len(pairs), len(SEVERITY))
    if not pairs:
        return score_severity(truth, probabilities)
    return _with_interval(score_severity(truth, probabilities), truth, probabilities.argmax(1) + 1)


def _with_interval(scores: dict[str, Any], truth: np.ndarray, answer: np.ndarray) -> dict[str, Any]:
    return {**scores, "interval": interval(truth, answer), "chance": chance(truth, answer)}


def _notes(found: Sequence[Row], study: Study, source: Path) -> list[str]:
    splits = {row.split for row in found}
    notes = []
    if _split(found, study):
        notes.append("some of these are series of one scan: they are counted one by one, as if of several patients")
    if source.name == OUT_OF_FOLD and (source.parent / PLAN).exists():
        return [*notes, "each of these was answered by the fold that has not seen it"]
    if study.fingerprint in learnt_wholly(source):
        return [
            *notes,
            "a model that answered was trained on all labelled scans of this study: this is memory, no score",
        ]
    if TRAIN in splits:
        notes.append("some of these are training scans: a model that learnt from them scores too high")
    if VALIDATION in splits:
        notes.append("some of these are validation scans: a model whose epoch was chosen by them scores too high")
    return notes


def report(result: dict[str, Any]) -> str:
    """Scores as text."""
    lines = [f"{result['answered']} of {result['asked']} labelled scans answered"]
    for task in ("presence", "severity"):
        lines += ["", *_task_lines(task, result[task])]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _task_lines(task: str, scores: dict[str, Any]) -> list[str]:
    if not scores["n"]:
        return [f"{task}: no scan with a label"]
    ends = scores["interval"]
    between = f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}" if ends else "no interval: a class has one scan"
    lines = [f"{task} (n={scores['n']})", f"  macro F1   {scores['macro_f1']:.4f}, {between}"]
    lines.append(f"  by chance  {scores['chance']:.4f}")
    lines.append(f"  accuracy   {scores['accuracy']:.4f}")
    if task == "presence":
        lines.append("  AUC        " + (f"{scores['auc']:.4f}" if "auc" in scores else "n/a (scans of one class only)"))
    width = max(map(len, scores["classes"]))
    lines.append(f"  {'':{width}}  F1      called as " + "  ".join(scores["classes"]))
    for k, name in enumerate(scores["classes"]):
        f1 = scores["f1"][name]
        counts = "  ".join(f"{n:>{len(c)}}" for n, c in zip(scores["confusion"][k], scores["classes"], strict=True))
        lines.append(f"  {name:{width}}  {'n/a   ' if f1 is None else f'{f1:.4f}'}            {counts}")
    return lines
