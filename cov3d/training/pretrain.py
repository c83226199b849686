"""Give a network knowledge before it sees the study: ``cov3d pretrain``, with lesion masks.

Kienzle et al., "COVID detection and severity prediction with 3D-ConvNeXt and custom pretrainings" (arXiv 2206.15073).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cov3d.config import LossKind, Machine, Method, Preprocessing, Pretraining, RunSettings, Saving, recorded
from cov3d.console import few, plural, say
from cov3d.errors import SettingError, StudyError
from cov3d.labels import SEVERITY, UNKNOWN
from cov3d.nets.build import CLASSES, MASKS, Heads
from cov3d.nets.model import Model
from cov3d.recipes import METHODS
from cov3d.runs import PRETRAINED
from cov3d.scans.cache import Cache, fill_masks
from cov3d.scans.mask import EMPTY, TOO_SMALL
from cov3d.scans.study import TEST, Row, Study
from cov3d.shown import OUTCOME
from cov3d.training.description import describe, name_of, summarise
from cov3d.training.dice import BothJudge, LesionLoss, MaskJudge
from cov3d.training.fit import fit_network
from cov3d.training.judge import ClassJudge, Judge
from cov3d.training.keeper import Keeper, choice_of
from cov3d.training.loaders import loaders
from cov3d.training.loss import loss_of
from cov3d.training.precision import pick_precision
from cov3d.training.pseudo import load_teacher, pseudo_masks
from cov3d.training.ranks import Ranks
from cov3d.training.session import Session, session
from cov3d.training.split import Split, split_any, unused
from cov3d.training.train import Run, check_run_folder, fill_caches, first_fills, prepare_study, start_network

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
    saving: Saving | None = None,
) -> Run:
    """Train a network to draw lesion masks, or to draw them and grade severity; its file is what ``train --weights`` takes.

    Without ``settings`` they are the published ones of the method. ``method`` is ``segmentation`` (the study's own masks),
    ``segmia`` (a teacher's masks) or ``multitask`` (a teacher's masks and the study's severities). Writes the run's folder
    (default ``pretrained/METHOD``) as :func:`cov3d.train` does; kept is the epoch of the best Dice, of ``multitask`` that of
    the best AUC of severity.

    Raises:
        SettingError: settings that exclude each other, or an output that exists.
        StudyError: no masks, or no severities, to learn from.
        ModelError: a teacher that draws no masks.
        Stopped: a signal, or the end of its time; all is saved.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    if method not in HELD_OUT:
        known = f"expected {', '.join(HELD_OUT)}; pictures are learnt by cov3d.pretrain_pictures"
        raise SettingError(f"there is no way of pretraining with masks called {method!r}; {known}")
    how = pretraining or Pretraining()
    how.check_used(method)
    settings = over_severity(settings or METHODS[method].settings(task="severity"), method)
    folder = Path(output_dir or PRETRAINED / method)
    machine = machine or Machine()
    asked = {"output_dir": str(folder), "overwrite": overwrite, "command": method, "pretraining": recorded(how)}
    with session(machine, saving, resume, study=study.fingerprint, settings=recorded(settings), **asked) as here:
        return _pretrain(study, method, settings, how, machine, cache, folder, here, overwrite)


def _pretrain(
    study: Study,
    method: Method,
    settings: RunSettings,
    how: Pretraining,
    machine: Machine,
    cache: str | Path,
    folder: Path,
    here: Session,
    overwrite: bool,
) -> Run:
    precision = pick_precision(settings.training.precision, here.device)
    teacher = load_teacher(how.teacher, here.device) if how.teacher else None
    study = prepare_study(study, settings)
    learnt = by_outcome(study) if method == "multitask" else study
    wanted = wanted_split(learnt, method, settings)
    if here.ranks.first:
        check_run_folder(folder, overwrite, here.resume)
    heads: Heads = (CLASSES, MASKS) if method == "multitask" else (MASKS,)
    network = start_network(settings, here.device, heads)
    caches = fill_caches(wanted, settings, cache, machine, here.ranks)
    masks = mask_caches(wanted, caches, settings, how, teacher, cache, machine, here.ranks)
    split = masked_split(wanted, caches, masks, method, how)
    about = {"method": method, "teacher": teacher.sha256 if teacher else None}
    summary = {**summarise(study, split, settings), **about, **({} if learnt is study else {"learnt": OUTCOME})}
    described = describe(study, settings, machine, summary, here.ranks.size)
    config = {**described, "pretraining": {**recorded(how), **about}}
    choice = choice_of(wanted, split, settings.training.keep == "last")
    keeper = Keeper(folder, judge_of(split, method, summary), settings, config, choice, heads)
    data = loaders(caches, split, settings.training, machine, here.device, masks, here.ranks)
    loss = LesionLoss(loss_of(split.train, settings) if method == "multitask" else None, how.weights_of_tasks)
    fit_network(network, data, loss, keeper, settings, precision, name_of(config, split, caches, masks), here)
    return Run(folder, {scan: cause for c in (*caches, *masks) for scan, cause in c.failures.items()})


def masked_split(
    wanted: Split, caches: tuple[Cache, Cache], masks: tuple[Cache, Cache], method: Method, how: Pretraining
) -> Split:
    """The scans that are there with their masks; what is to be said of these is said.

    Raises:
        StudyError: too few.
    """
    split = wanted.only({scan for part in masks for scan in part.entries} & {s for c in caches for s in c.entries})
    check_enough(split, caches, masks, method, how)
    for note in odd_masks(split, masks):
        say(f"note: {note}")
    return split


def over_severity(settings: RunSettings, method: Method) -> RunSettings:
    """The same, its loss over classes that of severity alone: balanced cross entropies, or of ``multitask`` the joint loss.

    Raises:
        SettingError: another was asked for.
    """
    loss = settings.loss
    if settings.task == "presence" or loss.severity_factor not in (None, 1.0):
        raise SettingError("pretraining learns masks and severity; leave --task presence and --severity-factor out")
    if loss.loss == "joint" and method != "multitask":
        raise SettingError(f"--loss joint says nothing in --method {method}; leave it out")
    kind: LossKind = "joint" if loss.loss == "joint" else "balanced-ce"
    return replace(settings, task="severity", loss=replace(loss, loss=kind, severity_factor=1.0))


def by_outcome(study: Study) -> Study:
    """The study itself; where nobody graded a scan, one whose positives have their outcome for a severity, if they have one."""
    if any(row.severity != UNKNOWN for row in study.rows if row.split != TEST):
        return study
    told = [row for row in study.rows if row.outcome != UNKNOWN and row.presence != 0]
    if not told:
        return study
    say("note: nobody graded these scans; their outcome is learnt instead: 0 as mild, 1 as critical")
    severities = {row.scan: OUTCOMES[row.outcome] for row in told}
    return replace(study, rows=tuple(replace(r, severity=severities.get(r.scan, UNKNOWN)) for r in study.rows))


def wanted_split(study: Study, method: Method, settings: RunSettings) -> Split:
    """The scans to learn from, and those that choose the epoch.

    Raises:
        StudyError: there is nothing to learn from.
    """
    lacking, lacks = needed(method, settings)
    rows = [row for row in study.rows if row.split != TEST and not lacks(row)]
    if method == "segmentation" and not rows:
        raise StudyError(
            f"{study.source}: no scan has a mask to learn from; name them in the column 'mask' of the study's table, or "
            "draw them with a teacher (--method segmia)"
        )
    if method == "multitask" and all(row.severity == UNKNOWN for row in rows):
        raise StudyError(f"{study.source}: no scan has a severity to learn from; add a severity table")
    split = split_any(rows, settings.training, HELD_OUT[method])
    if not split.train or not split.validation:
        raise StudyError(
            f"{study.source}: of {plural(len(rows), 'scan')} none is left to "
            f"{'learn from' if not split.train else 'choose the epoch by'}; add some, or say another --validation-fraction"
        )
    for note in unused(study.rows, split, lacking, lacks):
        say(f"note: {note}")
    return split


def needed(method: Method, settings: RunSettings) -> tuple[str, Callable[[Row], bool]]:
    """What a method needs to be known of a scan, and which rows lack it."""
    if method == "segmentation":
        return "mask", lambda row: row.mask is None
    if method == "segmia":
        return "", lambda row: False
    if settings.loss_kind == "joint":
        return "known presence", lambda row: row.presence == UNKNOWN
    return "severity", lambda row: row.severity == UNKNOWN


def mask_caches(
    split: Split,
    volumes: tuple[Cache, Cache],
    settings: RunSettings,
    how: Pretraining,
    teacher: Model | None,
    cache: str | Path,
    machine: Machine,
    ranks: Ranks,
) -> tuple[Cache, Cache]:
    """The masks of training and of validation scans, beside the caches of these."""

    def made(rows: tuple[Row, ...], beside: Cache, preprocessing: Preprocessing) -> Cache:
        def fill() -> Cache:
            if teacher is None:
                return fill_masks(rows, preprocessing, cache, machine, settings.reading, how.mask_labels)
            return pseudo_masks(rows, beside, preprocessing, teacher, how, settings.reading, machine)

        return first_fills(fill, ranks)

    larger = settings.augmentation.to_cache(settings.preprocessing)
    if larger == settings.preprocessing:
        one = made(split.rows, volumes[0], larger)
        return one, one
    return made(split.train, volumes[0], larger), made(split.validation, volumes[1], settings.preprocessing)


def judge_of(split: Split, method: Method, summary: dict[str, Any]) -> Judge:
    """What chooses the epoch."""
    masks = MaskJudge(split.validation)
    return BothJudge(ClassJudge(split.validation, "severity", summary), masks) if method == "multitask" else masks


def check_enough(
    split: Split, volumes: tuple[Cache, Cache], masks: tuple[Cache, Cache], method: Method, how: Pretraining
) -> None:
    """Raise a StudyError if too little is left to learn from or to choose by."""
    causes = failed((*volumes, *masks))
    if not split.train or not split.validation:
        left = "learn from" if not split.train else "choose the epoch by"
        raise StudyError(f"no scan that can be read, with its mask, is left to {left}{causes}")
    for part, rows in (("training", split.train), ("validation", split.validation)):
        if method == "multitask" and len({row.severity for row in rows} - {UNKNOWN}) < 2:
            raise StudyError(
                f"the {part} scans are all of one severity, and at least two are needed; add others{causes}"
            )
    if not any(masks[0].load(row.scan).any() for row in split.train):
        raise StudyError(f"{no_lesion(how)}{causes}")


def failed(caches: Sequence[Cache]) -> str:
    """What is to be said of scans that failed, and of their masks; nothing where none did."""
    causes = {f"{scan}: {cause}" for part in caches for scan, cause in part.failures.items()}
    lists = sorted({str(part.folder / "failures.csv") for part in caches if part.failures})
    return f". Left out are {few(sorted(causes), '; ')} (all in {' and '.join(lists)})" if causes else ""


def no_lesion(how: Pretraining) -> str:
    """That there is no lesion to learn from, and what to do."""
    if how.teacher and how.soft:
        return (
            "the teacher's probabilities are 0 in all training scans, so there is no lesion to learn from; name another"
        )
    if how.teacher:
        return (
            f"the teacher drew nothing above --threshold {how.threshold:g} in any training scan, so there is no lesion to learn "
            "from; lower --threshold, say --soft, or name another teacher"
        )
    labels = f" (none holds a value of --mask-labels {how.mask_labels})" if how.mask_labels else ""
    return f"every mask of the training scans is empty{labels}: there is no lesion to learn from"


def odd_masks(split: Split, masks: tuple[Cache, Cache]) -> list[str]:
    """What is to be said of masks of scans that are not known to be healthy."""
    found: dict[str, list[str]] = defaultdict(list)
    for part, rows in zip(masks, (split.train, split.validation), strict=True):
        for row in rows:
            for remark in part.entries[row.scan]["warnings"] if row.presence != 0 else ():
                if remark in (EMPTY, TOO_SMALL):
                    found[remark].append(row.scan)
    return [f"{plural(len(scans), 'scan')}: {remark} ({few(scans)})" for remark, scans in found.items()]
