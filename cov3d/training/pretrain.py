"""Give a network knowledge before it sees the study: ``cov3d pretrain``, with lesion masks.

Kienzle et al., "COVID detection and severity prediction with 3D-ConvNeXt and custom pretrainings" (arXiv 2206.15073).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cov3d.config import Machine, Method, Preprocessing, Pretraining, RunSettings, recorded
from cov3d.console import plural, say
from cov3d.errors import StudyError
from cov3d.labels import SEVERITY, UNKNOWN
from cov3d.nets.build import CLASSES, MASKS, Heads
from cov3d.nets.inputs import pick_device
from cov3d.nets.model import Model
from cov3d.scans.cache import Cache, fill_masks
from cov3d.scans.study import TEST, Row, Study
from cov3d.training.description import describe, name_of, summarise
from cov3d.training.dice import BothJudge, LesionLoss, MaskJudge
from cov3d.training.fit import fit_network, pick_precision
from cov3d.training.judge import ClassJudge, Judge
from cov3d.training.keeper import Keeper, choice_of
from cov3d.training.loaders import loaders
from cov3d.training.loss import loss_of
from cov3d.training.pseudo import load_teacher, pseudo_masks
from cov3d.training.split import Split, split_any
from cov3d.training.train import Run, check_run_folder, fill_caches, prepare_study, start_network

PRETRAINED = Path("pretrained")  # beside outputs/, where infer looks for models that answer
HELD_OUT = {"segmentation": 0.15, "segmia": 0.15, "multitask": 0.3}  # where a study has no validation scans of its own
OUTCOMES = {0: 1, 1: len(SEVERITY)}  # a study that knows but an outcome: none is learnt as mild, one as critical


def pretrain(
    study: Study,
    method: Method,
    settings: RunSettings | None = None,
    pretraining: Pretraining | None = None,
    machine: Machine | None = None,
    cache: str | Path = "cache",
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Run:
    """Train a network to draw lesion masks, or to draw them and grade severity; its file is what ``train --weights`` takes.

    ``method`` is ``segmentation`` (the study's own masks), ``segmia`` (a teacher's masks) or ``multitask`` (a teacher's masks
    and the study's severities). Writes the run's folder (default ``pretrained/METHOD``) as :func:`cov3d.train` does; kept is
    the epoch of the best Dice, of ``multitask`` that of the best AUC of severity.

    Raises:
        SettingError: settings that exclude each other, or an output that exists.
        StudyError: no masks, or no severities, to learn from.
        ModelError: a teacher that draws no masks.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    machine, how = machine or Machine(), pretraining or Pretraining()
    how.check_used(method)
    settings = graded(settings or RunSettings())
    folder = Path(output_dir or PRETRAINED / method)
    device = pick_device(machine.device)
    precision = pick_precision(settings.training.precision, device)
    teacher = load_teacher(how.teacher, device) if how.teacher else None
    study = prepare_study(study, settings)
    wanted = wanted_split(study, method, settings)
    check_run_folder(folder, overwrite, resume)
    heads: Heads = (CLASSES, MASKS) if method == "multitask" else (MASKS,)
    network = start_network(settings, device, heads)
    caches = fill_caches(wanted, settings, cache, machine)
    masks = mask_caches(wanted, caches, settings, how, teacher, cache, machine)
    split = wanted.only({scan for part in masks for scan in part.entries} & {s for c in caches for s in c.entries})
    check_enough(split, masks, method)
    about = {"method": method, "teacher": teacher.sha256 if teacher else None}
    summary = {**summarise(study, split, settings), **about}
    config = {**describe(study, settings, machine, summary), "pretraining": {**recorded(how), **about}}
    choice = choice_of(wanted, split, settings.training.keep == "last")
    keeper = Keeper(folder, judge_of(split, method), settings, config, choice, heads)
    data = loaders(caches, split, settings.training, machine, device, masks)
    loss = LesionLoss(loss_of(split.train, settings) if method == "multitask" else None, how.weights_of_tasks)
    fit_network(network, data, loss, keeper, settings, precision, name_of(config, split), resume)
    return Run(folder, {scan: cause for c in (*caches, *masks) for scan, cause in c.failures.items()})


def graded(settings: RunSettings) -> RunSettings:
    """The same, its loss over classes that of severity alone: the only one that pretraining knows."""
    loss = replace(settings.loss, loss="balanced-ce", severity_factor=1.0)
    return replace(settings, task="severity", loss=loss)


def wanted_split(study: Study, method: Method, settings: RunSettings) -> Split:
    """The scans to learn from, and those that choose the epoch.

    Raises:
        StudyError: there is nothing to learn from.
    """
    rows = [row for row in study.rows if row.split != TEST]
    if method == "segmentation":
        rows = [row for row in rows if row.mask is not None]
        if not rows:
            raise StudyError(
                f"{study.source}: no scan has a mask to learn from; name them in the column 'mask' of the study's table, or "
                "draw them with a teacher (--method segmia)"
            )
    if method == "multitask":
        rows = graded_rows(rows)
        if not rows:
            raise StudyError(f"{study.source}: no scan has a severity to learn from; add a severity table")
    left = len([row for row in study.rows if row.split != TEST]) - len(rows)
    if left:
        say(f"note: {plural(left, 'scan')} without {'mask' if method == 'segmentation' else 'severity'} left out")
    split = split_any(rows, settings.training, HELD_OUT[method])
    if not split.train or not split.validation:
        raise StudyError(
            f"{study.source}: of {plural(len(rows), 'scan')} none is left to "
            f"{'learn from' if not split.train else 'choose the epoch by'}; add some, or say another --validation-fraction"
        )
    return split


def graded_rows(rows: list[Row]) -> list[Row]:
    """Rows with a severity; where nobody graded any, those with an outcome, as if it were the least and the worst."""
    known = [row for row in rows if row.severity != UNKNOWN]
    if known:
        return known
    told = [row for row in rows if row.outcome != UNKNOWN and row.presence != 0]
    if told:
        say("note: nobody graded these scans; their outcome is learnt instead: 0 as mild, 1 as critical")
    return [replace(row, severity=OUTCOMES[row.outcome]) for row in told]


def mask_caches(
    split: Split,
    volumes: tuple[Cache, Cache],
    settings: RunSettings,
    how: Pretraining,
    teacher: Model | None,
    cache: str | Path,
    machine: Machine,
) -> tuple[Cache, Cache]:
    """The masks of training and of validation scans, beside the caches of these."""

    def made(rows: tuple[Row, ...], beside: Cache, preprocessing: Preprocessing) -> Cache:
        if teacher is None:
            return fill_masks(rows, preprocessing, cache, machine, settings.reading, how.mask_labels)
        return pseudo_masks(rows, beside, preprocessing, teacher, how, settings.reading, machine)

    larger = settings.augmentation.to_cache(settings.preprocessing)
    if larger == settings.preprocessing:
        one = made(split.rows, volumes[0], larger)
        return one, one
    return made(split.train, volumes[0], larger), made(split.validation, volumes[1], settings.preprocessing)


def judge_of(split: Split, method: Method) -> Judge:
    """What chooses the epoch."""
    masks = MaskJudge(split.validation)
    return BothJudge(ClassJudge(split.validation, "severity"), masks) if method == "multitask" else masks


def check_enough(split: Split, masks: tuple[Cache, Cache], method: Method) -> None:
    """Raise a StudyError if too little is left to learn from or to choose by."""
    if not split.train or not split.validation:
        left = "learn from" if not split.train else "choose the epoch by"
        raise StudyError(
            f"no scan that can be read, with its mask, is left to {left}; failures.csv in the caches says why"
        )
    severities = {row.severity for row in split.train}
    if method == "multitask" and len(severities) < 2:
        raise StudyError("the training scans are all of one severity, and at least two are needed; add others")
    if not any(masks[0].load(row.scan).any() for row in split.train):
        raise StudyError("every mask of the training scans is empty: there is no lesion to learn from")
