"""Fit a network: a fastai Learner with what the settings add to each step, saved after each epoch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback import schedule  # gives Learner its fit_one_cycle
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.learner import Learner, TrainEvalCallback
from fastai.optimizer import Adam, Optimizer

from cov3d.config import RunSettings, Training
from cov3d.console import progress, say
from cov3d.errors import Cov3dError
from cov3d.locks import alone_in
from cov3d.nets.inputs import memory_advice
from cov3d.runs import STATE
from cov3d.training.accumulate import Accumulate
from cov3d.training.augment import Augment
from cov3d.training.ema import Ema
from cov3d.training.epochs import EpochKeeper, Epochs
from cov3d.training.keeper import Keeper
from cov3d.training.loaders import Loaders
from cov3d.training.order import generator_of
from cov3d.training.precision import Precision
from cov3d.training.ranks import SAME_ROWS, Ranks
from cov3d.training.session import Session
from cov3d.training.state import Part, ResumableLearner, State, read_state
from cov3d.training.synchronise import synchronise
from cov3d.training.together import Together
from cov3d.training.trouble import Trouble

# What stands before an error's own sentence: a loader's process puts its traceback there, fastai the callback that it left.
WRAPPED = re.compile(r"\A.*(Cov3dError: |Exception occured in `\w+` when calling event `\w+`:\n\t)", re.DOTALL)
READER_DIED = re.compile(
    r"DataLoader worker.*(killed by signal|exited unexpectedly)|Pin memory thread exited", re.DOTALL
)


def fit_network(
    network: torch.nn.Module,
    data: Loaders,
    loss: torch.nn.Module,
    keeper: Keeper,
    settings: RunSettings,
    precision: str,
    run: str,
    session: Session,
) -> None:
    """Fit a network and let ``keeper`` keep what it finds; or go on where ``run`` was stopped.

    Raises:
        SettingError: nothing to go on with.
        Stopped: a signal, or the end of its time.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    training = settings.training
    numbers = settings.augmentation.numbers(settings.net.family)
    augment = Augment(numbers, settings.preprocessing.shape, training.seed)
    average = Ema(settings.ema) if settings.ema else None
    fitted = Fit(training, precision, run, session, keeper, keeper.folder)
    if not session.ranks.alone:
        say(f"the learning rate is {training.learning_rate:g}, which is not scaled")
    learner = fitted.learner(network, data, loss, adam(settings), average, [augment], wd=training.weight_decay)
    with fitted.going(learner):
        fit(learner, training)
    if session.ranks.first:
        keeper.finish()
    session.ranks.wait()  # who leaves earlier may take the first with it


@dataclass
class Fit:
    """What every fit of a network has, of scans or of pictures: steps, epochs, and a state that is saved."""

    training: Training
    precision: str
    run: str  # which run it is
    session: Session
    keeper: EpochKeeper
    folder: Path
    parts: dict[str, Part] = field(default_factory=dict)  # what changes while it goes on

    def learner(
        self,
        network: torch.nn.Module,
        data: Loaders,
        loss: torch.nn.Module,
        optimiser: Callable[..., Optimizer],
        average: Ema | None,
        more: Sequence[Callback],
        **options: Any,
    ) -> ResumableLearner:
        """A Learner with the callbacks that every fit has, and ``more``."""
        network = network.to(data.device)
        ranks, accumulate = self.session.ranks, self.training.accumulate
        if not ranks.alone:
            say(step_of(self.training, ranks))
        if self.training.sync_batchnorm and not ranks.alone:
            synchronise(network, ranks)
        trouble = Trouble(data, ranks, accumulate, self.training.skip_nan)
        self.parts |= {"network": network, "kept": self.keeper, "trouble": trouble}
        self.parts |= {"average": average} if average else {}
        self.parts["scaler"] = precision = Precision(self.precision, data.device)
        callbacks = [TrainEvalCallback(), *more, *([average] if average else []), precision, *steps(self.training)]
        callbacks += [] if ranks.alone else [Together(ranks, data.order)]
        given = {"loss_func": loss.to(data.device), "opt_func": optimiser, "default_cbs": False}
        return ResumableLearner(data, network, cbs=[*callbacks, trouble], **given, **options)

    @contextmanager
    def going(self, learner: ResumableLearner) -> Iterator[None]:
        """While it goes on: progress is shown, the state saved, signals are heard, and libraries' words made sentences."""
        path, ranks, total = self.folder / STATE, self.session.ranks, self.training.epochs * len(learner.dls.train)
        ranks.agree(SAME_ROWS, rows=self.run)  # a scan that one machine reads may be damaged on another
        found = read_state(path, self.run) if self.session.resume else None
        seed_rank(self.training.seed, ranks)
        done = found["epochs"] * len(learner.dls.train) + found["batches"] if found else 0
        own = alone_in(self.folder) if ranks.first else nullcontext()
        bar = progress(total, "train", done)
        with own, closing(learner.precision), advice(), self.session.asked_to_stop() as asked, bar as step:
            epochs = Epochs(self.keeper, step, ranks)
            parts = {**self.parts, "epoch": epochs}
            state = State(path, self.run, parts, self.session, asked, self.training.accumulate, found)
            learner.add_cbs([epochs, state])
            yield


def step_of(training: Training, ranks: Ranks) -> str:
    """What a step of several processes is."""
    parts = f"{ranks.size} processes, --batch-size {training.batch_size}, --accumulate {training.accumulate}"
    return f"a step is of {training.step(ranks.size)} rows ({parts})"


def seed_rank(seed: int, ranks: Ranks) -> None:
    """Let each process draw something else; the first what it would draw alone."""
    if not ranks.first:
        torch.manual_seed(generator_of(seed, 0, 0, ranks.rank).initial_seed())


def steps(training: Training) -> Iterator[Callback]:
    """What the settings change about a step of the optimiser."""
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
    except RuntimeError as error:
        if not (cause := trouble_of_workers(str(error))):
            raise
        raise Cov3dError(f"{cause}; then say --resume: what was saved stays") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise Cov3dError("a batch of one scan this small has no statistics; raise --width or --batch-size") from error


def trouble_of_workers(text: str) -> str:
    """What became of a loader's processes, and what to do, from torch's words about them; nothing if these are about others."""
    if "shared memory" in text or "Bus error" in text or "/torch_" in text:
        return "/dev/shm, through which processes pass pictures on, is full; enlarge it (docker --shm-size 8g) or lower --workers"
    if READER_DIED.search(text):
        return "a process that reads pictures was killed (out of memory?); free memory or lower --workers"
    return ""
