"""Which models answer: those of runs, of all folds of a cross-validation, or files."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cov3d.console import say
from cov3d.errors import ModelError
from cov3d.nets.model import Model, load_model
from cov3d.runs import ANSWERING, FINISHED, KEPT, MOST_FOLDS, PLAN, fold_folder

OUTPUTS = Path("outputs")  # where runs are, if nothing else was asked for


def load_models(asked: Sequence[str | Path], device: torch.device, allow_missing: bool = False) -> list[Model]:
    """The models that were asked for, in evaluation mode on ``device``; two files of a run with the same weights are one.

    Raises:
        ModelError: one is missing, cannot be read or is not the fold's that it lies in, unless ``allow_missing``; or there
            is none.
    """
    models: list[Model] = []
    files = find_models(asked, allow_missing)
    for file in files:
        try:
            model = load_model(file, device)
            check_fold(model, file)
            models.append(model)
        except ModelError as error:
            advice = _fold_advice(file.parent, "--overwrite ") if (file.parent.parent / PLAN).exists() else ""
            if not allow_missing or len(files) == 1:
                raise ModelError(f"{error}{advice}") from error
            say(f"note: answering without a model: {error}")
    if not models:
        raise ModelError("none of the models can be read; train them again")
    for cause in lost_folds(models, [Path(path) for path in asked] or [OUTPUTS]):
        if not allow_missing:
            raise ModelError(f"{cause}; train it again, or say --allow-missing to answer without it")
        say(f"note: answering without a fold: {cause}")
    return merged(models)


def check_fold(model: Model, file: Path) -> None:
    """Raise a ModelError for a model in a cross-validation that is not the fold's that it lies in."""
    plan = file.parent.parent / PLAN
    if not plan.exists():
        return
    count, _ = read_plan(plan)
    number = model.training.get("fold")
    here = isinstance(number, int) and file.parent == fold_folder(plan.parent, number)
    if model.training.get("folds") != count or not here:
        raise ModelError(f"{file} is not the model of this fold of {count}: somebody put it there")


def merged(models: Sequence[Model]) -> list[Model]:
    """The same, but where the epoch kept for presence and that for severity are one, the model stands once, for both."""
    found: list[Model] = []
    for model in models:
        twin = next((k for k, other in enumerate(found) if _same(model, other)), None)
        if twin is None:
            found.append(model)
        else:
            found[twin] = replace(found[twin], task="both")
    return found


def _same(model: Model, other: Model) -> bool:
    """Whether two files of one run hold the same weights."""
    if model.source is None or other.source is None or model.source.parent != other.source.parent:
        return False
    if model.training.get("epoch") != other.training.get("epoch") or model.heads != other.heads:
        return False
    mine, its = model.net.state_dict(), other.net.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def _fold_advice(fold: Path, replacing: str = "") -> str:
    """What to do about a fold, beside what is wrong with it; ``replacing`` is the option that replaces what is there."""
    number = fold.name.rpartition("-")[2]
    return (
        f". Train this fold again as the others were ({fold.parent / PLAN} has their settings) with {replacing}--fold {number}, "
        "or say --allow-missing to answer without it"
    )


def lost_folds(models: Sequence[Model], asked: Sequence[Path]) -> Iterator[str]:
    """Folds that models below a folder that was asked for say there are beside them, where no plan says so any more."""
    found: dict[tuple[Path, int], set[int]] = defaultdict(set)
    for model in models:
        run = model.source.parent if model.source else Path()
        number, count = model.training.get("fold"), model.training.get("folds")
        below = any(folder in run.parents for folder in asked) and not (run.parent / PLAN).exists()
        if below and isinstance(number, int) and isinstance(count, int):
            found[run.parent, min(count, MOST_FOLDS)].add(number)
    for (folder, count), numbers in found.items():
        for number in sorted(set(range(count)) - numbers):
            yield f"{fold_folder(folder, number)}: this fold, one of {count}, is missing, and {PLAN} is gone"


def find_models(asked: Sequence[str | Path], allow_missing: bool = False) -> list[Path]:
    """Model files for what was asked: files themselves, the kept ones of runs; or of all finished runs under ``outputs/``.

    Raises:
        ModelError: nothing there, or a fold of a cross-validation is missing; and what to do.
    """
    if not asked:
        found = [file for file in _kept(OUTPUTS, allow_missing) if _finished(file)]
        if not found:
            raise ModelError("there is no trained model under outputs/; run 'cov3d train', or name one with --model")
        return found
    files: list[Path] = []
    for path in map(Path, asked):
        kept = _kept(path, allow_missing) if path.is_dir() else [path]
        if not kept:
            raise ModelError(f"{path}: holds no {' or '.join(KEPT)}; name a run's folder or a model file")
        files += kept
    return list({os.path.realpath(file): file for file in files}.values())


def _kept(folder: Path, allow_missing: bool) -> list[Path]:
    """The kept models in a folder and below it, without those of folds that are not finished.

    Raises:
        ModelError: a cross-validation has lost a fold, and ``allow_missing`` does not let it pass: a mean over fewer models
            is another answer.
    """
    missing = [fold for plan in sorted(folder.rglob(PLAN)) for fold in _missing(plan)]
    for fold in missing:
        if not allow_missing:
            raise ModelError(f"{fold}: this fold is missing or not trained to its end{_fold_advice(fold)}")
        say(f"note: answering without {fold}, which is missing or not trained to its end")
    files = sorted(file for file in folder.rglob("*.safetensors") if file.name in KEPT)
    return [file for file in files if file.parent not in missing]


def _missing(plan: Path) -> Iterator[Path]:
    """Folds of a cross-validation without a finished run that keeps all its models."""
    count, task = read_plan(plan)
    wanted = [FINISHED, *(ANSWERING if task == "both" else (f"{task}.safetensors",))]
    for fold in (fold_folder(plan.parent, number) for number in range(count)):
        if not all((fold / name).is_file() for name in wanted):
            yield fold


def read_plan(plan: Path) -> tuple[int, str]:
    """How many folds a cross-validation has, and what they are kept for.

    Raises:
        ModelError: its plan is damaged.
    """
    try:
        content = json.loads(plan.read_text(encoding="utf-8"))
        count, task = int(content["folds"]), str(content["task"])
        if not 2 <= count <= MOST_FOLDS:
            raise ValueError(f"{count} folds")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{plan}: is damaged; run cov3d cross-validate again") from error
    return count, task


def _finished(file: Path) -> bool:
    """Whether the run that wrote a model came to its end; if not, it is left out, and said."""
    if (file.parent / FINISHED).exists():
        return True
    say(f"note: {file} is left out: its training has not finished; to use it all the same, name it with --model")
    return False
