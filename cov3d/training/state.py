"""All that a training is made of, on disk after each epoch, so that one that was stopped goes on as if it had not been.

``state.pt`` holds tensors and plain values only, and is loaded as such. It appears whole or not at all: until a new one is
there, the one before stands.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.learner import CancelEpochException, Learner
from torch import Generator

from cov3d.commit import commit
from cov3d.console import say
from cov3d.errors import Cov3dError, SettingError
from cov3d.runs import RUN_FILES

FORMAT = 1


class Part(Protocol):
    """Something of a training that changes while it goes on."""

    def state_dict(self) -> Any:
        """What it is now, as tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Become that again."""


class State(Callback):
    """Saves every part after each epoch; begins with what was found, if something was.

    ``run`` says which run this is, so that no other goes on with it. ``parts`` are by name; the optimiser, the scaler of half
    precision and the global generators are added.
    """

    order = 80  # after everything that an epoch changes, and that a fit begins with

    def __init__(self, path: Path, run: str, parts: Mapping[str, Part], found: Mapping[str, Any] | None = None):
        self.path, self.run_name, self.given, self.found = path, run, parts, found

    def parts(self) -> dict[str, Part]:
        """Every part by name."""
        parts = {**self.given, "optimizer": self.learn.opt, "generators": Generators()}
        if hasattr(self.learn, "mixed_precision"):
            parts["scaler"] = self.learn.mixed_precision.scaler
        return parts

    def before_fit(self) -> None:
        """Go on where the run was stopped."""
        if self.found is None:
            return
        for name, part in self.parts().items():
            part.load_state_dict(self.found["parts"][name])
        self.learn.first_epoch = self.found["epochs"]
        say(f"going on after epoch {self.found['epochs']}")

    def after_epoch(self) -> None:
        """Save."""
        state = {
            "format": FORMAT,
            "run": self.run_name,
            "epochs": self.learn.epoch + 1,
            "parts": {name: plain(part.state_dict()) for name, part in self.parts().items()},
        }
        commit(self.path, lambda file: torch.save(state, file))


class ResumableLearner(Learner):
    """A Learner whose epochs begin with ``first_epoch``; fastai's own way to skip epochs still runs what ends them."""

    first_epoch = 0

    def _do_fit(self) -> None:
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)


class Generators:
    """The global generators: Python's, numpy's, torch's, and of each GPU."""

    def state_dict(self) -> dict[str, Any]:
        """Where they are."""
        name, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back there."""
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


class Drawn:
    """A generator as a part."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def state_dict(self) -> torch.Tensor:
        """Where it is."""
        return self.generator.get_state()

    def load_state_dict(self, state: torch.Tensor) -> None:
        """Go back there."""
        self.generator.set_state(state)


def read_state(path: Path, run: str) -> dict[str, Any] | None:
    """What was saved of a run; None where it was stopped before its first epoch had ended.

    Raises:
        SettingError: nothing is there of a run that was longer, or it is of one with other settings, scans or masks.
        Cov3dError: it is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if any((path.parent / name).exists() for name in RUN_FILES):
            raise SettingError(f"{path} is gone, so nobody can go on; say --overwrite to begin again") from None
        say("no epoch had ended when this run was stopped: it begins")
        return None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        known, whose = state["format"], state["run"]
    except Exception as error:  # torch has many words for a damaged file
        raise Cov3dError(f"{path} is damaged; say --overwrite to begin again") from error
    if known != FORMAT:
        raise Cov3dError(f"{path} is of format {known}; use the version of cov3d that wrote it, or say --overwrite")
    if whose != run:
        raise SettingError(
            f"{path} is of a run with other settings, scans or masks; say what it was begun with (config.json beside it), or "
            "--overwrite to begin again"
        )
    return state


def plain(value: Any) -> Any:
    """The same in tensors and plain values: fastai and numpy have kinds of lists and numbers of their own."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or type(value).__name__ == "L":
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value.item() if isinstance(value, np.generic) else value
