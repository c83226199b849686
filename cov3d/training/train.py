"""Fit a network to a study: ``cov3d train``."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback import schedule  # noqa: F401  # gives Learner its fit_one_cycle
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import CancelBatchException, Learner
from fastai.optimizer import Adam

from cov3d.commit import check_writable, commit_json
from cov3d.config import LossSettings, Machine, NetSettings, Preprocessing, Task, Training, check_task, to_dict
from cov3d.console import progress, say
from cov3d.errors import Cov3dError, SettingError, StudyError
from cov3d.nets.build import build
from cov3d.nets.inputs import pick_device
from cov3d.nets.weights import start_from
from cov3d.scans.cache import Cache, fill_cache
from cov3d.scans.study import Row, Study
from cov3d.training.augment import PrepareInput
from cov3d.training.epochs import Epochs, Keeper, versions
from cov3d.training.loaders import loaders
from cov3d.training.loss import JointLoss
from cov3d.training.split import check_trainable, split_rows

RUN_FILES = (
    "config.json",
    "history.csv",
    "presence.safetensors",
    "severity.safetensors",
    "last.safetensors",
    "predictions.csv",
    "metrics.json",
    "curves.png",
)


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, and the scans that could not be used with their causes."""

    folder: Path
    failures: dict[str, str]


def train(
    study: Study,
    task: Task = "both",
    preprocessing: Preprocessing | None = None,
    net: NetSettings | None = None,
    loss: LossSettings | None = None,
    training: Training | None = None,
    machine: Machine | None = None,
    cache: str | Path = "cache",
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Fit a network and keep its best epoch for the task; preprocess first what the cache lacks.

    Writes the run's folder (default ``outputs/TASK``): models, settings, history, curves, validation predictions.

    Raises:
        SettingError: settings that exclude each other, or an output that exists.
        StudyError: labels from which the task cannot be learnt.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    preprocessing, net, loss = preprocessing or Preprocessing(), net or NetSettings(), loss or LossSettings()
    training, machine, task = training or Training(), machine or Machine(), check_task(task)
    device = pick_device(machine.device)
    folder = open_run_folder(Path(output_dir or f"outputs/{task}"), overwrite)
    wanted = split_rows(study.rows, training)
    check_trainable(*wanted, task)
    filled = fill_cache([*wanted[0], *wanted[1]], preprocessing, cache, machine)
    rows = tuple([row for row in part if row.scan in filled.entries] for part in wanted)
    for warning in (*study.warnings, *check_trainable(*rows, task), *_left_out(study, wanted, filled)):
        say(f"note: {warning}")
    seed_everything(training.seed)
    network = build(net)
    say(f"{net.architecture}: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters on {device}")
    if report := start_from(network, training.weights, net):
        say(str(report))
    described = _describe(study, rows, task, preprocessing, net, loss, training, machine)
    commit_json(folder / "config.json", described)
    keeper = Keeper(folder, task, rows[1], net, preprocessing, described["training_summary"])
    with _memory_advice():
        _fit(network, rows, filled, keeper, loss.factor(task), loss, training, machine, device)
    keeper.finish()
    return Run(folder, filled.failures)


def open_run_folder(folder: Path, overwrite: bool) -> Path:
    """The run's folder, empty of an earlier run's files.

    Raises:
        SettingError: there is an earlier run, and no ``overwrite``.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"--output-dir {folder} is a file; name a folder")
    existing = [folder / name for name in RUN_FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise SettingError(f"{folder} holds a run already; say --overwrite, or another --output-dir")
    check_writable(folder)
    for file in existing:
        file.unlink()
    return folder


def seed_everything(seed: int) -> None:
    """Seed every generator that a run draws from: same seed, same CPU, same result to the bit."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Accumulate(Callback):
    """Step once for several batches, with the mean of their gradients; an epoch's last batches step in any case."""

    order = MixedPrecision.order - 4
    run_valid = False

    def __init__(self, batches: int):
        self.batches = batches

    def _group(self) -> tuple[int, int]:
        """Place in the group of batches that share a step, and the size of that group."""
        place = self.learn.iter % self.batches
        return place, min(self.batches, self.learn.n_iter - (self.learn.iter - place))

    def after_loss(self) -> None:
        """Divide, so that the gradients that add up are a mean."""
        self.learn.loss_grad = self.learn.loss_grad / self._group()[1]

    def before_step(self) -> None:
        """Step only at the group's end."""
        place, size = self._group()
        if place + 1 < size:
            raise CancelBatchException  # leaves the gradients to the next batch


def _fit(
    network: torch.nn.Module,
    rows: Sequence[Sequence[Row]],
    cache: Cache,
    keeper: Keeper,
    factor: float,
    loss: LossSettings,
    training: Training,
    machine: Machine,
    device: torch.device,
) -> None:
    labels = np.array([[row.presence, row.severity] for row in rows[0]])
    joint = JointLoss(labels[:, 0], labels[:, 1], factor, loss.presence_smoothing, loss.severity_smoothing)
    data = loaders(cache, rows[0], rows[1], training, machine, device)
    with progress(training.epochs * len(data.train), "train") as step:
        learner = Learner(
            data,
            network.to(device),
            loss_func=joint.to(device),
            opt_func=Adam,
            wd=training.weight_decay,
            default_cbs=False,
            cbs=[*_callbacks(training, device), Epochs(keeper, step)],
        )
        learner.fit_one_cycle(training.epochs, lr_max=training.learning_rate)


def _callbacks(training: Training, device: torch.device) -> list[Callback]:
    from fastai.learner import TrainEvalCallback

    callbacks: list[Callback] = [TrainEvalCallback(), PrepareInput(training.reflection, training.seed)]
    precision = pick_precision(training.precision, device)
    if precision != "fp32":
        callbacks.append(MixedPrecision(amp_mode=precision))
    if training.accumulate > 1:
        callbacks.append(Accumulate(training.accumulate))
    return callbacks


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


class _memory_advice:
    """Out of memory on the GPU becomes a sentence that says what to lower."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise Cov3dError(
                "the GPU's memory is full; lower --batch-size (and raise --accumulate to keep the effective batch), "
                "--width or --base-width"
            ) from error
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            raise Cov3dError("this machine's memory is full; lower --batch-size, --width or --base-width") from error


def _left_out(study: Study, wanted: Sequence[Sequence[Row]], filled: Cache) -> list[str]:
    used = len(wanted[0]) + len(wanted[1])
    notes = []
    if used < len(study.rows):
        notes.append(
            f"{len(study.rows) - used} of {len(study.rows)} scans not used (no known presence, or held for a test)"
        )
    if filled.failures:
        notes.append(f"{len(filled.failures)} of {used} scans failed; causes in {filled.folder / 'failures.csv'}")
    return notes


def _describe(
    study: Study,
    rows: Sequence[Sequence[Row]],
    task: Task,
    preprocessing: Preprocessing,
    net: NetSettings,
    loss: LossSettings,
    training: Training,
    machine: Machine,
) -> dict[str, Any]:
    if not study.rows:
        raise StudyError("the study is empty")
    return {
        "command": ["cov3d", *sys.argv[1:]],
        "versions": versions(),
        "task": task,
        "severity_factor": loss.factor(task),
        "study": {"source": study.source.name, "fingerprint": study.fingerprint},
        "preprocessing": to_dict(preprocessing),
        "net": to_dict(net),
        "loss": to_dict(loss),
        "training": to_dict(training),
        "machine": to_dict(machine),
        "training_summary": {
            "train_scans": len(rows[0]),
            "validation_scans": len(rows[1]),
            "epochs": training.epochs,
            "seed": training.seed,
            "study_fingerprint": study.fingerprint,
        },
    }
