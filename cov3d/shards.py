"""Which share of the work is this process's, where several do it: ``--shard I/N``, torchrun's or Slurm's environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cov3d.errors import SettingError
from cov3d.launch import find_launch

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


WHOLE = Shard()


def find_shard(said: str | None = None, environment: Mapping[str, str] | None = None) -> Shard:
    """The share that ``said`` names, as ``0/8``; else that of a Slurm array, of torchrun's or srun's processes, or of both.

    Raises:
        SettingError: it is none.
    """
    if said is not None:
        return parse_shard(said)
    environment = os.environ if environment is None else environment
    array, launch = _of_array(environment), find_launch(environment)
    found = " and ".join(filter(None, [array.found_in, launch.found_in]))
    return Shard(array.number * launch.size + launch.rank, array.count * launch.size, found)


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


def _of_array(environment: Mapping[str, str]) -> Shard:
    """A Slurm array's task, or all; an array's numbers may begin anywhere, with any step."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    if not all(environment.get(name, "").isdigit() for name in names):
        return WHOLE
    task, first, last, count = (int(environment[name]) for name in names)
    step = (last - first) // (count - 1) if count > 1 else 1
    number, left = divmod(task - first, max(step, 1))
    if left or first + step * (count - 1) != last or not 0 <= number < count:
        raise SettingError(
            "the numbers of this Slurm array's tasks are not evenly spaced, so nobody knows which share is this one's; say "
            "--shard 0/8, or --shard 0/1 for all"
        )
    return Shard(number, count, "a Slurm array" if count > 1 else "")
