"""Fit a network: a fastai Learner with what the settings add to each step, saved after each epoch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from fastai.callback import schedule  # gives Learner its fit_one_cycle
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.learner import Learner, TrainEvalCallback
from fastai.optimizer import Adam, Optimizer

from cov3d.config import RunSettings, Training
from cov3d.console import progress
from cov3d.errors import Cov3dError, SettingError
from cov3d.nets.inputs import memory_advice
from cov3d.runs import STATE
from cov3d.training.accumulate import Accumulate
from cov3d.training.augment import Augment
from cov3d.training.ema import Ema
from cov3d.training.epochs import Epochs
from cov3d.training.keeper import Keeper
from cov3d.training.loaders import Loaders
from cov3d.training.state import Drawn, Part, ResumableLearner, State, read_state

# What stands before an error's own sentence: a loader's process puts its traceback there, fastai the callback that it left.
WRAPPED = re.compile(r"\A.*(Cov3dError: |Exception occured in `\w+` when calling event `\w+`:\n\t)", re.DOTALL)


def fit_network(
    network: torch.nn.Module,
    data: Loaders,
    loss: torch.nn.Module,
    keeper: Keeper,
    settings: RunSettings,
    precision: str,
    run: str,
    resume: bool = False,
) -> None:
    """Fit a network and let ``keeper`` keep what it finds; with ``resume`` go on where ``run`` was stopped.

    Raises:
        SettingError: nothing to go on with.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    training, path = settings.training, keeper.folder / STATE
    found = read_state(path, run) if resume else None
    augment = Augment(settings.augmentation.numbers(settings.net.family), settings.preprocessing.shape, training.seed)
    average = Ema(settings.ema) if settings.ema else None
    parts: dict[str, Part] = {"network": network, "kept": keeper}
    parts |= {"order": Drawn(data.order), "draws": Drawn(augment.generator)}
    parts |= {"average": average} if average else {}
    with advice(), progress(training.epochs * len(data.train), "train") as step:
        learner = ResumableLearner(
            data,
            network.to(data.device),
            loss_func=loss.to(data.device),
            opt_func=adam(settings),
            wd=training.weight_decay,
            default_cbs=False,
            cbs=[
                TrainEvalCallback(),
                augment,
                *([average] if average else []),
                *steps(training, precision),
                Epochs(keeper, step),
                State(path, run, parts, found),
            ],
        )
        fit(learner, training)
    keeper.finish()


def steps(training: Training, precision: str) -> Iterator[Callback]:
    """What the settings change about a step of the optimiser."""
    if precision != "fp32":
        yield MixedPrecision(amp_mode=precision)
    if training.accumulate > 1:
        yield Accumulate(training.accumulate)
    if training.clip is not None:
        yield GradientClip(training.clip)


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


def seed_everything(seed: int) -> None:
    """Seed every generator that a run draws from: same seed, same CPU, same result to the bit."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def advice(sizes: str = "--width or --base-width") -> Iterator[None]:
    """What libraries say in the middle of a training, as sentences; ``sizes`` are what to lower where memory is short."""
    try:
        with memory_advice(f"--batch-size (and raise --accumulate to keep the effective batch), {sizes}"):
            yield
    except Cov3dError as error:
        error.args = (WRAPPED.sub("", str(error)).strip(),)
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise Cov3dError("a batch of one scan this small has no statistics; raise --width or --batch-size") from error
