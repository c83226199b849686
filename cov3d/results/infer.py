"""Answers for scans: ``cov3d infer``. Reflection views and models averaged as probabilities, one row a scan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cov3d.config import Inference, Machine, Reading
from cov3d.console import natural, progress, say
from cov3d.errors import ModelError
from cov3d.labels import SEVERITY
from cov3d.nets.inputs import memory_advice, pick_device
from cov3d.nets.model import load_model
from cov3d.predictions import Prediction, write_predictions
from cov3d.results.ensemble import Ensemble
from cov3d.results.journal import appending, check_output, open_journal, place
from cov3d.results.submission import write_submission
from cov3d.scans.read import ask_scans
from cov3d.scans.tensors import read_tensors

KEPT = ("presence.safetensors", "severity.safetensors")
FINISHED = "metrics.json"  # the last thing that a training writes
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
) -> list[Prediction]:
    """Write and return one row for every scan asked for, in natural order; a failed scan's row names the cause.

    ``models`` are model files or run folders; if there are none, the best of every run under ``outputs/``. A scan is
    preprocessed as each model's file says. Rows are on disk as soon as they are made; with ``resume`` those of an earlier
    run stay, and only scans that have no answer yet, or have changed, are done.

    Raises:
        Cov3dError: no scans, no models, or an output that exists or cannot be written.
    """
    machine, reading, output = machine or Machine(), reading or Reading(), Path(output)
    paths = ask_scans(scans, reading)
    check_output(output, resume, overwrite)
    device = pick_device(machine.device)
    ensemble = Ensemble([load_model(file, device) for file in find_models(models)], inference or Inference())
    _announce(len(paths), ensemble, device)
    rows, todo = open_journal(output, paths, ensemble.provenance(), reading, resume)
    rows += _answer(todo, ensemble, reading, _readers(machine, device), output)
    write_predictions(output, rows)
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


def _answer(
    paths: Sequence[Path], ensemble: Ensemble, reading: Reading, machine: Machine, output: Path
) -> list[Prediction]:
    """Rows of scans as they get ready, each on the disk before the next."""
    rows: list[Prediction] = []
    advice = memory_advice("--workers, or use a smaller model")
    with advice, appending(output) as append, progress(len(paths), "infer") as step:
        for tensors in read_tensors(paths, ensemble.preprocessings, reading, machine):
            rows.append(ensemble.answer(paths[tensors.index], tensors))
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


def find_models(asked: Sequence[str | Path]) -> list[Path]:
    """Model files for what was asked: files themselves, the kept ones of runs; or of all finished runs under ``outputs/``.

    Raises:
        ModelError: nothing there, and what to do.
    """
    if not asked:
        found = [file for file in _kept(Path("outputs")) if _finished(file)]
        if not found:
            raise ModelError("there is no trained model under outputs/; run 'cov3d train', or name one with --model")
        return found
    files: list[Path] = []
    for path in map(Path, asked):
        kept = _kept(path) if path.is_dir() else [path]
        if not kept:
            raise ModelError(f"{path}: holds no {' or '.join(KEPT)}; name a run's folder or a model file")
        files += kept
    return list({os.path.realpath(file): file for file in files}.values())


def _kept(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.safetensors") if file.name in KEPT)


def _finished(file: Path) -> bool:
    """Whether the run that wrote a model came to its end; if not, it is left out, and said."""
    if (file.parent / FINISHED).exists():
        return True
    say(f"note: {file} is left out: its training has not finished; to use it all the same, name it with --model")
    return False


def summary(rows: Sequence[Prediction], output: Path) -> str:
    """The last line of a run: answered and failed add up to what was asked."""
    failed = sum(bool(row.error) for row in rows)
    return f"{output}: {len(rows) - failed} answered, {failed} failed, {len(rows)} asked"
