"""All that a training is made of, on disk every so often, so that one that was stopped goes on as if it had not been.

``state.pt`` holds tensors and plain values only, and is loaded as such. It appears whole or not at all, and the one before it
stays beside it.
"""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.learner import CancelEpochException, Learner
from fastai.optimizer import Optimizer
from torch import Tensor

from cov3d.commit import TEMPORARY_PREFIX, commit
from cov3d.console import say
from cov3d.errors import Cov3dError, SettingError
from cov3d.runs import FINISHED, STATE_BEFORE
from cov3d.stopping import Asked, Stopped
from cov3d.training.ranks import Ranks
from cov3d.training.session import Session

FORMAT = 2


class Part(Protocol):
    """Something of a training that changes while it goes on."""

    def state_dict(self) -> Any:
        """What it is now, as tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Become that again."""


class State(Callback):
    """Saves every part after each epoch, every so often within one, and when asked to stop; begins with what was found.

    ``run`` says which run this is, so that no other goes on with it. ``parts`` are by name; the optimiser and the global
    generators are added.
    """

    order = 80  # after everything that a batch or an epoch changes, and that a fit begins with

    def __init__(
        self,
        path: Path,
        run: str,
        parts: Mapping[str, Part],
        session: Session,
        asked: Asked,
        accumulate: int = 1,
        found: Mapping[str, Any] | None = None,
    ):
        self.path, self.run_name, self.given, self.found = path, run, parts, found
        self.session, self.asked, self.accumulate = session, asked, accumulate
        self.saved = time.monotonic()
        self.latest = found["taken_from"] if found else ""  # the name of what this run saved last
        self.moved = False  # whether this process has done a step

    def parts(self) -> dict[str, Part]:
        """Every part by name."""
        own: dict[str, Part] = {
            "optimizer": OptimizerState(self.learn.opt),
            "generators": Generators(self.session.ranks),
        }
        return {**self.given, **own}

    def before_fit(self) -> None:
        """Go on where the run was stopped."""
        if self.found is None:
            return
        for name, part in self.parts().items():
            part.load_state_dict(self.found["parts"].get(name, {}))  # 0.1.0 saved no loss scale for fp32
        epoch, batch = self.found["epochs"], self.found["batches"]
        self.learn.first_epoch, self.learn.first_batch = epoch, batch
        self.learn.train_iter = self.found["steps"]
        say(f"going on after {f'batch {batch} of epoch {epoch + 1}' if batch else f'epoch {epoch}'}")

    def before_train(self) -> None:
        """A learning rate's place in its schedule is a sum, and goes on as one."""
        if self.learn.first_batch and self.found is not None:
            self.learn.pct_train = self.found["progress"]

    def after_batch(self) -> None:
        """Save, if it is time; stop, if that is asked for."""
        if not self.learn.training:
            self._after_validation_batch()
            return
        self.moved, batch = True, self.learn.iter + 1
        if batch % self.accumulate and batch < self.learn.n_iter:
            return  # gradients of a step that is not done are not saved
        due = time.monotonic() - self.saved > 60 * self.session.saving.save_every
        stop, due = self.session.ranks.any(bool(self.asked), due)
        if stop or due:
            self._save(self.learn.epoch, batch)
        if stop:
            self._stop(batch)

    def _after_validation_batch(self) -> None:
        """Stop in validation, too, if this process has done any step: else runs of short sessions would never leave it."""
        if self.session.ranks.alone and self.moved and self.asked:  # shares of validation are not all of one length
            self._save(self.learn.epoch, len(self.learn.dls.train))
            self._stop(len(self.learn.dls.train))

    def after_epoch(self) -> None:
        """Save."""
        self._save(self.learn.epoch + 1, 0)
        if self.learn.epoch + 1 == self.learn.n_epoch:
            self.path.with_name(STATE_BEFORE).unlink(missing_ok=True)
        [stop] = self.session.ranks.any(bool(self.asked))
        if stop and self.learn.epoch + 1 < self.learn.n_epoch:
            self._stop(len(self.learn.dls.train))

    def _save(self, epochs: int, batches: int) -> None:
        if hasattr(self.learn, "together"):
            self.learn.together.share_statistics()
        parts = {name: plain(part.state_dict()) for name, part in self.parts().items()}
        where = {"epochs": epochs, "batches": batches, "steps": self.learn.train_iter, "progress": self.learn.pct_train}
        if self.session.ranks.first:
            keep_before(self.path, self.latest)
            state = {"format": FORMAT, "run": self.run_name, **where, "parts": parts}
            commit(self.path, lambda file: torch.save(state, file))
            self.latest = self.path.name
        self.session.ranks.wait()  # who leaves earlier may take the first with it
        self.saved = time.monotonic()

    def _stop(self, batch: int) -> None:
        where = f"after batch {batch} of {len(self.learn.dls.train)} in epoch {self.learn.epoch + 1}"
        said = f"stopped by {self.asked.reason or 'another process'} {where}"
        raise Stopped(said if self.session.ranks.first else "")


class ResumableLearner(Learner):
    """A Learner that begins with ``first_batch`` of ``first_epoch``; fastai's own way to skip epochs runs what ends them."""

    first_epoch = first_batch = 0

    def _do_fit(self) -> None:
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self.dls.order.epoch, self.dls.order.first = self.epoch, self.first_batch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)

    def all_batches(self) -> None:
        """One batch after the other."""
        first, self.first_batch = (self.first_batch, 0) if self.training else (0, self.first_batch)
        self.n_iter = len(self.dl)
        for number, batch in enumerate(self.dl, first):
            self.one_batch(number, batch)


class OptimizerState:
    """A fastai optimiser's state, which fastai itself leaves on the device that it was read to."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, and the state of each parameter."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that, each tensor on the device of its parameter."""
        parameters = [parameter for parameter, *_ in self.optimizer.all_params()]
        moved = [
            {name: value.to(parameter.device) if isinstance(value, Tensor) else value for name, value in own.items()}
            for parameter, own in zip(parameters, state["state"], strict=True)
        ]
        self.optimizer.load_state_dict({**state, "state": moved})


class Generators:
    """The global generators: Python's, numpy's, and of each process torch's and its GPU's."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    def state_dict(self) -> dict[str, Any]:
        """Where they are."""
        name, keys, *rest = np.random.get_state()
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8)
        return {
            "python": random.getstate(),
            "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
            "torch": self.ranks.gather_rows(torch.get_rng_state()),
            "cuda": self.ranks.gather_rows(gpu),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back there."""
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"][self.ranks.rank])
        gpu = state["cuda"][self.ranks.rank]
        if torch.cuda.is_available() and len(gpu):
            torch.cuda.set_rng_state(gpu)


def keep_before(path: Path, latest: str) -> None:
    """Let what this run saved last have another name, too, so that it is there if the next is lost."""
    before = path.with_name(STATE_BEFORE)
    if latest == STATE_BEFORE:  # what has the first name is damaged
        return
    if not latest:  # what is there is another run's
        before.unlink(missing_ok=True)
        return
    with suppress(OSError):  # no links on some disks
        link = before.with_name(f"{TEMPORARY_PREFIX}{before.name}")
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
        link.replace(before)


def read_state(path: Path, run: str) -> dict[str, Any] | None:
    """What was saved of a run, or what was saved before it if that is damaged; None where nothing was saved yet.

    ``taken_from`` tells which of both.

    Raises:
        SettingError: nothing is there of a run that had ended, or it is of one with other settings, scans or masks.
        Cov3dError: it is damaged.
    """
    before = path.with_name(STATE_BEFORE)
    if not path.exists() and not before.exists():
        if (path.parent / FINISHED).exists():
            raise SettingError(f"{path} is gone, so nobody can go on; say --overwrite to begin again")
        say("nothing had been saved when this run was stopped: it begins")
        return None
    try:
        return _read(path, run)
    except Damaged as error:
        try:
            state = _read(before, run)
        except Damaged:
            raise Cov3dError(f"{error}; say --overwrite to begin again") from error
        say(f"note: {error}; going on with what was saved before it")
        return state


class Damaged(Cov3dError):
    """A file that holds no state."""


def _read(path: Path, run: str) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch does not look at its own checksums
            flipped = archive.testzip()
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        known, whose = state["format"], state["run"]
    except FileNotFoundError:
        raise Damaged(f"{path} is gone") from None
    except Exception as error:  # torch and zipfile have many words for a damaged file
        raise Damaged(f"{path} is damaged") from error
    if flipped:
        raise Damaged(f"{path} has changed since it was written")
    if known != FORMAT:
        raise Cov3dError(f"{path} is of format {known}; use the version of cov3d that wrote it, or say --overwrite")
    if whose != run:
        raise SettingError(
            f"{path} is of a run with other settings, scans, masks or processes; say what it was begun with (config.json "
            "beside it), or --overwrite to begin again"
        )
    return {**state, "taken_from": path.name}


def plain(value: Any) -> Any:
    """The same in tensors and plain values: fastai and numpy have kinds of lists and numbers of their own."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or type(value).__name__ == "L":
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value.item() if isinstance(value, np.generic) else value
