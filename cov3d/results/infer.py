"""Answers for scans: ``cov3d infer``. Reflection views and models averaged as probabilities, one row a scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cov3d.commit import sweep
from cov3d.config import Inference, Machine, Reading
from cov3d.console import few, plural, progress, say
from cov3d.errors import SettingError
from cov3d.labels import SEVERITY
from cov3d.nets.inputs import device_of_share, memory_advice
from cov3d.predictions import Prediction, in_order, write_predictions
from cov3d.results.claim import claimed
from cov3d.results.ensemble import Ensemble
from cov3d.results.journal import Asked, Journal, appending, check_output, open_journal
from cov3d.results.masks import check_free, check_masks, foreign_masks, mask_names
from cov3d.results.models import load_models
from cov3d.results.parts import part_file
from cov3d.results.provenance import place
from cov3d.results.submission import NO_CLASSES, write_submission
from cov3d.scans.drives import check_drive, drives_of
from cov3d.scans.read import ask_scans
from cov3d.scans.tensors import read_tensors
from cov3d.shards import WHOLE, Shard

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
    shard: Shard = WHOLE,
) -> list[Prediction]:
    """Write and return one row for every scan asked for, in natural order; a failed scan's row names the cause.

    ``models`` are model files or run folders; if there are none, the best of every run under ``outputs/``. A scan is
    preprocessed as each model's file says. Rows are on disk as soon as they are made; with ``resume`` those of an earlier
    run stay, and only scans that have no answer yet, or have changed, are done. Where models draw masks, rows tell how much
    lesion there is, and ``masks`` is a folder for the masks themselves, which lie on the scans as these are stored. With a
    ``shard`` only that share of the scans is done, and written to a part that :func:`~cov3d.results.parts.collect` joins.

    Raises:
        Cov3dError: no scans, no models, an output that exists, cannot be written or is being written by another run, or a
            drive that was lost on the way.
    """
    machine, reading = machine or Machine(), reading or Reading()
    if submission is not None and not shard.whole:
        raise SettingError(f"--submission lists all scans, and this is share {shard} of them; say it with --collect")
    output, folder = part_file(Path(output), shard), None if masks is None else Path(masks)
    named = [Path(scan) for scan in scans]
    asked = Asked(ask_scans(named, reading), shard)
    check_output(output, resume, overwrite)
    device = device_of_share(machine.device)
    inference = inference or Inference()
    ensemble = Ensemble(load_models(models, device, inference.allow_missing), inference)
    if folder is not None:
        _check_masks(folder, named, asked, ensemble, replace=resume or overwrite)
    if submission is not None and not ensemble.classifiers:
        raise SettingError(NO_CLASSES)
    _announce(asked, ensemble, device)
    with claimed(output) as claim:
        for written in {output.parent, folder or output.parent}:
            sweep(written)
        journal = open_journal(claim, asked, ensemble.provenance(), reading, resume, ensemble.columns, folder)
        rows = [*journal.rows, *_answer(journal, ensemble, reading, _readers(machine, device), output)]
        write_predictions(output, rows, ensemble.columns)
    if folder is not None and (others := foreign_masks(folder, (file.name for file in journal.masks.values()))):
        say(f"note: {folder} holds {plural(len(others), 'mask')} of other scans, from before: {few(others)}")
    answers = _asked(asked.mine, rows)
    if submission is not None:
        write_submission(submission, answers)
    return answers


def _check_masks(folder: Path, named: Sequence[Path], asked: Asked, ensemble: Ensemble, replace: bool) -> None:
    """Raise a SettingError for masks that cannot be, or that are there and are not to be replaced."""
    check_masks(folder, named, asked.paths, ensemble.models)
    if not replace:
        names = mask_names({place(path): path for path in asked.paths}, {})
        check_free(folder, (names[place(path)] for path in asked.mine))


def _announce(asked: Asked, ensemble: Ensemble, device: torch.device) -> None:
    scans = f"{len(asked.paths)} scans"
    if not asked.shard.whole:
        scans = f"share {asked.shard}, {len(asked.mine)} of {scans}"
    say(f"{scans}, models: {len(ensemble.models)}, on {device}. This is {NOT_A_DEVICE}.")
    for note in ensemble.blind_spots:
        say(f"note: {note}")


def _readers(machine: Machine, device: torch.device) -> Machine:
    """On a CPU one reader beside the network: it has the cores, and more readers would only make it wait."""
    return replace(machine, workers=1) if device.type == "cpu" and machine.workers is None else machine


def _answer(journal: Journal, ensemble: Ensemble, reading: Reading, machine: Machine, output: Path) -> list[Prediction]:
    """Rows of scans as they get ready, each on the disk before the next, and its mask before it."""
    rows: list[Prediction] = []
    todo, wanted = journal.todo, ensemble.preprocessings
    drives = drives_of(todo)
    advice = memory_advice("--workers, or use a smaller model, and say --resume: what is answered is kept")
    with advice, appending(output, ensemble.columns) as append, progress(len(todo), "infer") as step:
        for tensors in read_tensors(todo, wanted, reading, machine, frames=bool(ensemble.segmenters)):
            path = todo[tensors.index]
            if tensors.error:
                check_drive(path, drives, "say --resume: what is answered is kept")
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
    answers = in_order([row for row in rows if place(row.path) in asked])
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
