"""Which of the processes that torchrun or Slurm's srun has started together this one is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from cov3d.errors import SettingError

FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems give away by themselves
ALONE_IN_SLURM = "SLURM_STEP_NUM_TASKS=1 cov3d …"  # what works inside a step of several tasks, too


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together; one alone, if nothing is said.

    They meet at ``address`` and ``port``, or, if none is said, as torchrun tells torch. ``gpus`` is how many their machine has
    for all of them; 0 where nobody says.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its machine
    local_size: int = 1
    found_in: str = ""  # whose environment said so
    address: str = ""
    port: int = 0
    gpus: int = 0


def find_launch(environment: Mapping[str, str] | None = None, terminal: bool | None = None) -> Launch:
    """What the environment says: torchrun's, which may also be written by hand, or else srun's.

    An ``srun`` of one task, and a batch script itself, are one process alone. So is one at a ``terminal``: tasks of srun have
    none, but for the shell of ``srun --pty``, whose other tasks have ended.

    Raises:
        SettingError: its rank is none of them.
    """
    environment = os.environ if environment is None else environment
    terminal = _at_terminal() if terminal is None else terminal
    found = _by_torchrun(environment) or (None if terminal else _by_srun(environment))
    if found is None or found.size <= 1:
        return Launch()
    if found.rank >= found.size:
        raise SettingError(f"process {found.rank} of {found.size}, says {found.found_in}; they are counted from 0")
    return found


def _by_torchrun(environment: Mapping[str, str]) -> Launch | None:
    rank, size = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None or size is None:
        return None
    local_rank, local_size = _number(environment, "LOCAL_RANK") or 0, _number(environment, "LOCAL_WORLD_SIZE") or 1
    return Launch(rank, size, local_rank, local_size, "torchrun")


def _by_srun(environment: Mapping[str, str]) -> Launch | None:
    rank, size = (_number(environment, name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
    if rank is None or size is None:
        return None
    counts = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    node = min(_number(environment, "SLURM_NODEID") or 0, len(counts) - 1)
    first = "localhost" if len(counts) == 1 else first_node(environment.get("SLURM_STEP_NODELIST", ""))
    return Launch(
        rank,
        size,
        _number(environment, "SLURM_LOCALID") or 0,
        counts[node],
        "srun",
        environment.get("MASTER_ADDR") or first,
        _number(environment, "MASTER_PORT") or _port(environment),
        _number(environment, "SLURM_GPUS_ON_NODE") or 0,
    )


def tasks_per_node(said: str) -> list[int]:
    """Slurm's ``8(x2),4`` as 8, 8, 4."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", said)
    return [int(count) for count, times in parts for _ in range(int(times or 1))] or [1]


def first_node(said: str) -> str:
    """The first of Slurm's list of nodes: ``gpu[07-09,12],login`` begins with gpu07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", said)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else said)


def _port(environment: Mapping[str, str]) -> int:
    """A port that steps of one job do not share, and jobs of one machine rarely."""
    job, step = (_number(environment, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (10 * job + step) % PORTS


def _number(environment: Mapping[str, str], name: str) -> int | None:
    said = environment.get(name, "")
    return int(said) if said.isdigit() else None


def _at_terminal() -> bool:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return any(stream is not None and not stream.closed and stream.isatty() for stream in streams)
