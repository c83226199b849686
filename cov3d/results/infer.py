"""Answers for scans: ``cov3d infer``. Reflection views and models averaged as probabilities, one row a scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cov3d.config import Inference, Machine, Reading
from cov3d.console import few, natural, plural, progress, say
from cov3d.errors import SettingError
from cov3d.labels import SEVERITY
from cov3d.nets.inputs import memory_advice, pick_device
from cov3d.predictions import Prediction, write_predictions
from cov3d.results.ensemble import Ensemble
from cov3d.results.journal import Journal, appending, check_output, open_journal, place
from cov3d.results.masks import check_free, check_masks, foreign_masks, mask_names
from cov3d.results.models import load_models
from cov3d.results.submission import write_submission
from cov3d.scans.read import ask_scans
from cov3d.scans.tensors import read_tensors

ENOUGH = 3  # scans, to wonder why all have the same answer
NOT_A_DEVICE = "research software, not a medical device: no answer here is a diagnosis"


def infer(
    scans: Iterable[str | Path],
    models: Sequence[str | Path] = (),
    output: str | Path = "predictions.csv",
    inference: Inference | None = None,
    machine: Machine | None = None,
    resume: bool = False,
    overwrite: bool = False,
    submission: str | Path | None = None,
    reading: Reading | None = None,
    masks: str | Path | None = None,
) -> list[Prediction]:
    """Write and return one row for every scan asked for, in natural order; a failed scan's row names the cause.

    ``models`` are model files or run folders; if there are none, the best of every run under ``outputs/``. A scan is
    preprocessed as each model's file says. Rows are on disk as soon as they are made; with ``resume`` those of an earlier
    run stay, and only scans that have no answer yet, or have changed, are done. Where models draw masks, rows tell how much
    lesion there is, and ``masks`` is a folder for the masks themselves, which lie on the scans as these are stored.

    Raises:
        Cov3dError: no scans, no models, or an output that exists or cannot be written.
    """
    machine, reading, output = machine or Machine(), reading or Reading(), Path(output)
    asked = [Path(scan) for scan in scans]
    paths = ask_scans(asked, reading)
    check_output(output, resume, overwrite)
    device = pick_device(machine.device)
    inference = inference or Inference()
    ensemble = Ensemble(load_models(models, device, inference.allow_missing), inference)
    folder = None if masks is None else Path(masks)
    if folder is not None:
        check_masks(folder, asked, paths, ensemble.models)
    if folder is not None and not (resume or overwrite):
        check_free(folder, mask_names({place(path): path for path in paths}, {}).values())
    if submission is not None and not ensemble.classifiers:
        raise SettingError("--submission lists presence and severity, and none of the models answers them")
    _announce(len(paths), ensemble, device)
    journal = open_journal(output, paths, ensemble.provenance(), reading, resume, ensemble.columns, folder)
    rows = [*journal.rows, *_answer(journal, ensemble, reading, _readers(machine, device), output)]
    write_predictions(output, rows, ensemble.columns)
    if folder is not None and (others := foreign_masks(folder, (file.name for file in journal.masks.values()))):
        say(f"note: {folder} holds {plural(len(others), 'mask')} of other scans, from before: {few(others)}")
    answers = _asked(paths, rows)
    if submission is not None:
        write_submission(submission, answers)
    return answers


def _announce(scans: int, ensemble: Ensemble, device: torch.device) -> None:
    say(f"{scans} scans, models: {len(ensemble.models)}, on {device}. This is {NOT_A_DEVICE}.")
    for note in ensemble.blind_spots:
        say(f"note: {note}")


def _readers(machine: Machine, device: torch.device) -> Machine:
    """On a CPU one reader beside the network: it has the cores, and more readers would only make it wait."""
    return replace(machine, workers=1) if device.type == "cpu" and machine.workers is None else machine


def _answer(journal: Journal, ensemble: Ensemble, reading: Reading, machine: Machine, output: Path) -> list[Prediction]:
    """Rows of scans as they get ready, each on the disk before the next, and its mask before it."""
    rows: list[Prediction] = []
    todo, wanted = journal.todo, ensemble.preprocessings
    advice = memory_advice("--workers, or use a smaller model")
    with advice, appending(output, ensemble.columns) as append, progress(len(todo), "infer") as step:
        for tensors in read_tensors(todo, wanted, reading, machine, frames=bool(ensemble.segmenters)):
            path = todo[tensors.index]
            mask = journal.masks.get(place(path))
            rows.append(ensemble.answer(path, tensors, mask))
            if rows[-1].error and mask is not None:
                mask.unlink(missing_ok=True)  # an earlier run's
            append(rows[-1])
            step(rows[-1].scan)
    return rows


def _asked(paths: Sequence[Path], rows: Sequence[Prediction]) -> list[Prediction]:
    """The rows of the scans that were asked for, in natural order; it is said if all have the same answer."""
    asked = {place(path) for path in paths}
    answers = sorted((row for row in rows if place(row.path) in asked), key=lambda row: natural(row.path))
    if _all_alike(answers):
        say("note: all scans have the same answer, to the last digit; are they one scan, or is the model damaged?")
    return answers


def _all_alike(rows: Sequence[Prediction]) -> bool:
    answered = [row.cells() for row in rows if row.covid is not None]
    answers = {tuple(cells[name] for name in ("covid_probability", *SEVERITY)) for cells in answered}
    return len(answered) >= ENOUGH and len(answers) == 1


def summary(rows: Sequence[Prediction], output: Path) -> str:
    """The last line of a run: answered and failed add up to what was asked."""
    failed = sum(bool(row.error) for row in rows)
    return f"{output}: {len(rows) - failed} answered, {failed} failed, {len(rows)} asked"
