"""Fit a network to a study: ``cov3d train``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback import schedule  # gives Learner its fit_one_cycle
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.learner import Learner, TrainEvalCallback
from fastai.optimizer import Adam, Optimizer

from cov3d.commit import check_writable
from cov3d.config import Machine, RunSettings, Training
from cov3d.console import progress, say
from cov3d.errors import Cov3dError, SettingError
from cov3d.nets.build import build
from cov3d.nets.inputs import memory_advice, pick_device
from cov3d.nets.weights import start_from
from cov3d.runs import PLAN, RUN_FILES
from cov3d.scans.cache import Cache, fill_cache
from cov3d.scans.series import every_series, with_patients
from cov3d.scans.study import Study
from cov3d.training.accumulate import Accumulate
from cov3d.training.augment import Augment
from cov3d.training.description import describe, summarise
from cov3d.training.ema import Ema
from cov3d.training.epochs import Epochs, Keeper, epoch_note
from cov3d.training.loaders import loaders
from cov3d.training.loss import loss_of
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
) -> Run:
    """Fit a network and keep its best epoch for the task; preprocess first what the cache lacks.

    With ``all_data`` every labelled scan trains, the last epoch is kept, and nothing is scored.

    Writes the run's folder (default ``outputs/TASK``): models, settings, history, curves, validation predictions.

    Raises:
        SettingError: settings that exclude each other, or an output that exists.
        StudyError: labels from which the task cannot be learnt.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    settings, machine = settings or RunSettings(), machine or Machine()
    if all_data and (settings.training.keep == "best" or settings.training.validation_fraction is not None):
        raise SettingError("--all-data holds no scans out, so leave --keep best and --validation-fraction out")
    if all_data:
        settings = replace(settings, training=replace(settings.training, keep="last"))
    study = prepare_study(study, settings)
    split = everything(study.rows) if all_data else split_rows(study.rows, settings.training)
    folder = Path(output_dir or f"outputs/{settings.task}")
    return train_split(study, split, settings, machine, cache, folder, overwrite)


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
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Run:
    """Fit a network to the training scans of a split, and keep one epoch; see :func:`train`.

    ``about`` is what the model file says of its training besides.
    """
    device = pick_device(machine.device)
    precision = pick_precision(settings.training.precision, device)
    wanted = learnt_from(split, settings)
    keep_last = settings.training.keep == "last"
    check_trainable(wanted, settings.task, choosing=not keep_last)
    check_run_folder(folder, overwrite)
    network = start_network(settings, device)
    caches = fill_caches(wanted, settings, cache, machine)
    split = wanted.only({scan for filled in caches for scan in filled.entries})
    notes = [*unused(study.rows, wanted), *check_trainable(split, settings.task, choosing=not keep_last)]
    for note in dict.fromkeys([*notes, *(text for filled in caches for text in _failed(filled))]):
        say(f"note: {note}")
    config = describe(study, settings, machine, {**summarise(study, split, settings), **(about or {})})
    keeper = Keeper(folder, split.validation, settings, config, epoch_note(wanted, split, keep_last))
    with _advice():
        _fit(network, caches, split, keeper, settings, machine, device, precision)
    keeper.finish()
    return Run(folder, {scan: cause for filled in caches for scan, cause in filled.failures.items()})


def fill_caches(split: Split, settings: RunSettings, cache: str | Path, machine: Machine) -> tuple[Cache, Cache]:
    """The caches of training and of validation scans: two where training scans are cropped from larger ones, else one."""
    larger = settings.augmentation.to_cache(settings.preprocessing)
    if larger == settings.preprocessing:
        filled = fill_cache(split.rows, larger, cache, machine, settings.reading)
        return filled, filled
    return (
        fill_cache(split.train, larger, cache, machine, settings.reading),
        fill_cache(split.validation, settings.preprocessing, cache, machine, settings.reading),
    )


def start_network(settings: RunSettings, device: torch.device) -> torch.nn.Module:
    """The network with the weights that it starts from; everything that is drawn from here on follows the seed."""
    seed_everything(settings.training.seed)
    network = build(settings.net)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    say(f"{settings.net.architecture}: {millions:.2f} M parameters on {device}")
    training = settings.training
    weights = start_from(network, training.weights, settings.net, training.inflate, training.inflate_norm)
    published = "--weights kinetics" if settings.net.family == "resnet" else "2D weights: --weights FILE --inflate full"
    say(str(weights) if weights.matched else f"weights: random; the published models began with {published}")
    return network


def check_run_folder(folder: Path, overwrite: bool) -> Path:
    """The run's folder, which can be written.

    Raises:
        SettingError: there is an earlier run, and no ``overwrite``.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"--output-dir {folder} is a file; name a folder")
    if (folder / PLAN).exists():
        raise SettingError(f"{folder} holds a cross-validation; name another --output-dir")
    if not overwrite and any((folder / name).exists() for name in RUN_FILES):
        raise SettingError(f"{folder} holds a run already; say --overwrite, or another --output-dir")
    return check_writable(folder)


def seed_everything(seed: int) -> None:
    """Seed every generator that a run draws from: same seed, same CPU, same result to the bit."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _fit(
    network: torch.nn.Module,
    caches: tuple[Cache, Cache],
    split: Split,
    keeper: Keeper,
    settings: RunSettings,
    machine: Machine,
    device: torch.device,
    precision: str,
) -> None:
    training = settings.training
    data = loaders(caches, split, training, machine, device)
    network.checkpointing = training.checkpoint_activations  # type: ignore[assignment]
    with progress(training.epochs * len(data.train), "train") as step:
        learner = Learner(
            data,
            network.to(device),
            loss_func=loss_of(split.train, settings).to(device),
            opt_func=adam(settings),
            wd=training.weight_decay,
            default_cbs=False,
            cbs=[*callbacks(settings, precision), Epochs(keeper, step)],
        )
        fit(learner, training)


def callbacks(settings: RunSettings, precision: str) -> Iterator[Callback]:
    """What the settings add to each step."""
    training = settings.training
    yield TrainEvalCallback()
    yield Augment(settings.augmentation.numbers(settings.net.family), settings.preprocessing.shape, training.seed)
    if precision != "fp32":
        yield MixedPrecision(amp_mode=precision)
    if training.accumulate > 1:
        yield Accumulate(training.accumulate)
    if training.clip is not None:
        yield GradientClip(training.clip)
    if settings.ema:
        yield Ema(settings.ema)


def adam(settings: RunSettings) -> Callable[..., Optimizer]:
    """Adam with its decay of squares and its ε as the two systems have them: fastai's, or torch's.

    ε matters: a ConvNeXt's blocks begin behind a layer scale of 1e-6, so that their gradients are far below fastai's 1e-5,
    and would hardly move.
    """
    decay, epsilon = (0.99, 1e-5) if settings.net.family == "resnet" else (0.999, 1e-8)
    return partial(Adam, sqr_mom=decay, eps=epsilon, decouple_wd=settings.training.optimizer == "adamw")


def fit(learner: Learner, training: Training) -> None:
    """Fit with the learning rate going as ``--schedule`` says."""
    epochs, rate = training.epochs, training.learning_rate
    if training.schedule == "1cycle":
        learner.fit_one_cycle(epochs, lr_max=rate)
    elif training.schedule == "cosine":
        learner.fit(epochs, lr=rate, cbs=schedule.ParamScheduler({"lr": schedule.SchedCos(rate, 0.0)}))
    else:
        learner.fit(epochs, lr=rate)


def pick_precision(wanted: str, device: torch.device) -> str:
    """The precision that ``--precision`` means on a device.

    Raises:
        SettingError: half precision on a CPU.
    """
    if device.type != "cuda":
        if wanted in ("bf16", "fp16"):
            raise SettingError(f"--precision {wanted} is for a GPU; on a CPU leave it at auto")
        return "fp32"
    if wanted == "auto":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return wanted


@contextmanager
def _advice() -> Iterator[None]:
    """What libraries say in the middle of a training, as sentences."""
    try:
        with memory_advice(
            "--batch-size (and raise --accumulate to keep the effective batch), --width or --base-width"
        ):
            yield
    except Cov3dError as error:  # a loader's process wraps it in its traceback; the sentence stands last
        raise Cov3dError(str(error).rsplit("Cov3dError: ", 1)[-1].strip()) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise Cov3dError("a batch of one scan this small has no statistics; raise --width or --batch-size") from error


def _failed(filled: Cache) -> list[str]:
    if not filled.failures:
        return []
    return [f"{len(filled.failures)} scans failed and are left out; causes in {filled.folder / 'failures.csv'}"]
