"""How this process takes part in a run: beside which others, from where on, how often it saves, and until when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cov3d.config import Machine, Saving, recorded
from cov3d.nets.inputs import device_of_rank
from cov3d.stopping import Asked, asked_to_stop
from cov3d.training.ranks import ALONE, Ranks, joined


@dataclass(frozen=True)
class Session:
    """One process's part in a run; alone, on its device, from the beginning to the end, if nothing is said."""

    device: torch.device
    ranks: Ranks = ALONE
    saving: Saving = Saving()
    resume: bool = False
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # generators and messages between GPUs are the current one's

    def asked_to_stop(self) -> AbstractContextManager[Asked]:
        """True from the moment at which the run is asked to end, or its time is up."""
        hours = self.saving.max_hours
        end = None if hours is None else self.begun + 3600 * hours
        return asked_to_stop(end, f"--max-hours {hours:g}" if hours is not None else "")

    def resumed(self, resume: bool) -> Session:
        """The same, which goes on with what is saved or does not."""
        return replace(self, resume=resume)


@contextmanager
def session(machine: Machine, saving: Saving | None, resume: bool, **asked: Any) -> Iterator[Session]:
    """A session beside the other processes that torchrun or srun has started, if one has; all are ``asked`` for the same.

    Raises:
        SettingError: a device that is not there, or processes that were asked for different things.
        Cov3dError: the others are not there.
    """
    begun = time.monotonic()
    device, saving = device_of_rank(machine.device), saving or Saving()
    with joined(device) as ranks:
        ranks.agree(resume=resume, saving=recorded(saving), **asked)
        yield Session(device, ranks, saving, resume, begun)
