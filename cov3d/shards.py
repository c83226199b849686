"""Which share of the work is this process's, where several do it: ``--shard I/N``, torchrun's or Slurm's environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cov3d.errors import SettingError

T = TypeVar("T")
MOST = 10_000


@dataclass(frozen=True)
class Shard:
    """The share ``number`` of ``count``, counted from 0."""

    number: int = 0
    count: int = 1
    found_in: str = ""  # whose environment said so

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def whole(self) -> bool:
        """Whether it is all of the work."""
        return self.count == 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Every ``count``-th item: neighbours are alike in size, so that shares are, too."""
        return list(items[self.number :: self.count])


def find_shard(said: str | None = None, environment: Mapping[str, str] | None = None) -> Shard:
    """The share that ``said`` names, as ``0/8``; else that of torchrun's, of a Slurm array's or of srun's environment.

    Raises:
        SettingError: it is none.
    """
    if said is not None:
        return parse_shard(said)
    environment = os.environ if environment is None else environment
    for found in (_of_torchrun, _of_array, _of_srun):
        shard = found(environment)
        if shard is not None and not shard.whole:
            return shard
    return Shard()


def parse_shard(said: str) -> Shard:
    """``0/8`` as a share.

    Raises:
        SettingError: it is none.
    """
    matched = re.fullmatch(r"(\d{1,6})/(\d{1,6})", said.strip())
    number, count = map(int, matched.groups()) if matched else (0, 0)
    if not 1 <= count <= MOST or number >= count:
        last = f" to {count - 1}/{count}" if 1 < count <= MOST else ""
        example = f"0/{count}{last}" if 1 <= count <= MOST else "0/8 to 7/8"
        raise SettingError(f"--shard {said!r} is no share; they are counted from 0: {example}")
    return Shard(number, count)


def _of_torchrun(environment: Mapping[str, str]) -> Shard | None:
    return _shard(environment, "RANK", "WORLD_SIZE", "torchrun")


def _of_srun(environment: Mapping[str, str]) -> Shard | None:
    return _shard(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun")


def _of_array(environment: Mapping[str, str]) -> Shard | None:
    """A Slurm array's task; its numbers may begin anywhere, with any step."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    if not all(environment.get(name, "").isdigit() for name in names):
        return None
    task, first, last, count = (int(environment[name]) for name in names)
    step = (last - first) // (count - 1) if count > 1 else 1
    number, left = divmod(task - first, max(step, 1))
    if left or first + step * (count - 1) != last or not 0 <= number < count:
        raise SettingError(
            "the numbers of this Slurm array's tasks are not evenly spaced, so nobody knows which share is this one's; say "
            "--shard 0/8, or --shard 0/1 for all"
        )
    return Shard(number, count, "a Slurm array")


def _shard(environment: Mapping[str, str], number: str, count: str, found_in: str) -> Shard | None:
    if not all(environment.get(name, "").isdigit() for name in (number, count)):
        return None
    return Shard(int(environment[number]), int(environment[count]), found_in)
