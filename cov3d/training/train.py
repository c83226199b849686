"""Fit a network to a study: ``cov3d train``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cov3d.commit import check_writable, sweep
from cov3d.config import Machine, Preprocessing, RunSettings, Saving, recorded
from cov3d.console import few, plural, say
from cov3d.errors import Cov3dError, SettingError
from cov3d.nets.activations import check_batch
from cov3d.nets.build import CLASSES, MASKS, Heads, build
from cov3d.nets.weights import DECODER, start_from
from cov3d.runs import PLAN, RUN_FILES, STATE
from cov3d.scans.cache import Cache, fill_cache
from cov3d.scans.series import every_series, with_patients
from cov3d.scans.study import Row, Study
from cov3d.training.description import describe, name_of, summarise
from cov3d.training.fit import fit_network, seed_everything
from cov3d.training.judge import ClassJudge
from cov3d.training.keeper import Keeper, choice_of
from cov3d.training.loaders import loaders
from cov3d.training.loss import loss_of
from cov3d.training.precision import pick_precision
from cov3d.training.ranks import ALONE, Ranks
from cov3d.training.session import Session, session
from cov3d.training.split import Split, check_trainable, everything, learnt_from, split_rows, unused


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, and the scans that could not be used with their causes."""

    folder: Path
    failures: dict[str, str]


def train(
    study: Study,
    settings: RunSettings | None = None,
    machine: Machine | None = None,
    cache: str | Path = "cache",
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    all_data: bool = False,
    resume: bool = False,
    saving: Saving | None = None,
) -> Run:
    """Fit a network and keep its best epoch for the task; preprocess first what the cache lacks.

    With ``all_data`` every labelled scan trains, the last epoch is kept, and nothing is scored. With ``resume`` a run that
    was stopped goes on where it was saved last, as if it had not been stopped. The processes of torchrun, or
    of srun, train together.

    Writes the run's folder (default ``outputs/TASK``): models, settings, history, curves, validation predictions.

    Raises:
        SettingError: settings that exclude each other, or an output that exists.
        StudyError: labels from which the task cannot be learnt.
        Stopped: a signal, or the end of its time; all is saved.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    settings, machine = settings or RunSettings(), machine or Machine()
    folder = Path(output_dir or f"outputs/{settings.task}")
    if (folder.parent / PLAN).exists():
        raise SettingError(f"{folder} lies in a cross-validation's folder; name another --output-dir")
    if all_data and (settings.training.keep == "best" or settings.training.validation_fraction is not None):
        raise SettingError("--all-data holds no scans out, so leave --keep best and --validation-fraction out")
    if all_data:
        settings = replace(settings, training=replace(settings.training, keep="last"))
    asked = {"output_dir": str(folder), "overwrite": overwrite, "all_data": all_data, "settings": recorded(settings)}
    with session(machine, saving, resume, command="train", study=study.fingerprint, **asked) as here:
        study = prepare_study(study, settings)
        split = everything(study.rows) if all_data else split_rows(study.rows, settings.training)
        return train_split(study, split, settings, machine, cache, folder, here, overwrite)


def prepare_study(study: Study, settings: RunSettings) -> Study:
    """The study with all that DICOM headers add to it; what is to be said of it is said."""
    study = with_patients(every_series(study, settings.reading))
    for note in study.warnings:
        say(f"note: {note}")
    return study


def train_split(
    study: Study,
    split: Split,
    settings: RunSettings,
    machine: Machine,
    cache: str | Path,
    folder: Path,
    here: Session,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Run:
    """Fit a network to the training scans of a split, and keep one epoch; see :func:`train`.

    ``about`` is what the model file says of its training besides.
    """
    precision = pick_precision(settings.training.precision, here.device)
    wanted = learnt_from(split, settings)
    keep_last = settings.training.keep == "last"
    check_trainable(wanted, settings.task, choosing=not keep_last)
    if here.ranks.first:
        check_run_folder(folder, overwrite, here.resume)
    network = start_network(settings, here.device)
    caches = fill_caches(wanted, settings, cache, machine, here.ranks)
    split = wanted.only({scan for filled in caches for scan in filled.entries})
    notes = [*unused(study.rows, wanted), *check_trainable(split, settings.task, choosing=not keep_last)]
    for note in dict.fromkeys([*notes, *(text for filled in caches for text in _failed(filled))]):
        say(f"note: {note}")
    summary = {**summarise(study, split, settings), "all_data": not wanted.validation, **(about or {})}
    config = describe(study, settings, machine, summary, here.ranks.size)
    judge = ClassJudge(split.validation, settings.task, summary)
    keeper = Keeper(folder, judge, settings, config, choice_of(wanted, split, keep_last))
    data = loaders(caches, split, settings.training, machine, here.device, ranks=here.ranks)
    loss = loss_of(split.train, settings)
    fit_network(network, data, loss, keeper, settings, precision, name_of(config, split, caches), here)
    return Run(folder, {scan: cause for filled in caches for scan, cause in filled.failures.items()})


def fill_caches(
    split: Split, settings: RunSettings, cache: str | Path, machine: Machine, ranks: Ranks = ALONE
) -> tuple[Cache, Cache]:
    """The caches of training and of validation scans: two where training scans are cropped from larger ones, else one."""

    def filled(rows: Sequence[Row], preprocessing: Preprocessing) -> Cache:
        return first_fills(lambda: fill_cache(rows, preprocessing, cache, machine, settings.reading), ranks)

    larger = settings.augmentation.to_cache(settings.preprocessing)
    if larger == settings.preprocessing:
        one = filled(split.rows, larger)
        return one, one
    return filled(split.train, larger), filled(split.validation, settings.preprocessing)


def first_fills(fill: Callable[[], Cache], ranks: Ranks) -> Cache:
    """A cache that the first process fills, with all the cores there are, while the others wait for it to take it as it is.

    Raises:
        Cov3dError: they do not see what the first one has made.
    """
    if ranks.first:
        made = fill()
        ranks.gather({"entries": list(made.entries), "failures": made.failures})
        return made
    told, found = ranks.gather(None)[0], fill()
    if unseen := [scan for scan in told["entries"] if scan not in found.entries]:
        raise Cov3dError(
            f"{found.folder} does not hold {few(unseen)} here; --cache must be a folder that all machines share"
        )
    return replace(found, entries={scan: found.entries[scan] for scan in told["entries"]}, failures=told["failures"])


def start_network(settings: RunSettings, device: torch.device, heads: Heads = (CLASSES,)) -> torch.nn.Module:
    """The network with the weights that it starts from; everything that is drawn from here on follows the seed."""
    seed_everything(settings.training.seed)
    network = build(settings.net, heads)
    check_batch(network, settings.training.batch_size, settings.preprocessing.shape, device)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    say(f"{settings.net.architecture}: {millions:.2f} M parameters on {device}")
    training = settings.training
    network.checkpointing = training.checkpoint_activations  # type: ignore[assignment]
    weights = start_from(network, training.weights, settings.net, training.inflate, training.inflate_norm)
    published = "--weights kinetics" if settings.net.family == "resnet" else "2D weights: --weights FILE --inflate full"
    if MASKS in heads:
        goes_on = any(name.startswith(DECODER) for name in weights.matched)
        say(f"the head of masks {'goes on with theirs' if goes_on else 'is new'}")
    say(str(weights) if weights.matched else f"weights: random; the published models began with {published}")
    return network


def check_run_folder(folder: Path, overwrite: bool, resume: bool = False) -> Path:
    """The run's folder, which can be written; it is made with the first file, so that a run refused later leaves none.

    Raises:
        SettingError: there is an earlier run, and neither ``overwrite`` nor ``resume``; or nothing to resume.
    """
    if overwrite and resume:
        raise SettingError("--resume keeps what is there and --overwrite does not; say one of them")
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"--output-dir {folder} is a file; name a folder")
    if (folder / PLAN).exists():
        raise SettingError(f"{folder} holds a cross-validation; name another --output-dir")
    if not (overwrite or resume) and any((folder / name).exists() for name in RUN_FILES):
        further = "--resume to go on with it, " if (folder / STATE).exists() else ""
        raise SettingError(f"{folder} holds a run already; say {further}--overwrite, or another --output-dir")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    check_writable(folder)
    sweep(folder)
    with suppress(OSError):  # somebody else has begun to fill it
        for path in made:
            path.rmdir()
    return folder


def _failed(filled: Cache) -> list[str]:
    if not filled.failures:
        return []
    failed = plural(len(filled.failures), "scan")
    return [f"{failed} failed and left out; causes in {filled.folder / 'failures.csv'}"]
