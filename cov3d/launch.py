"""Which of the processes that torchrun or Slurm's srun has started together this one is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems give away by themselves


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together; one alone, if nothing is said.

    ``meeting`` is where they find each other, as torch wants it; ``gpus`` is how many their machine has for all of them, 0
    where nobody says.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its machine
    local_size: int = 1
    found_in: str = ""  # whose environment said so
    meeting: str = ""
    gpus: int = 0


def find_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """What the environment says: torchrun's, which may also be written by hand, or else srun's.

    An ``srun`` of one task, and a batch script itself, are one process alone.
    """
    environment = os.environ if environment is None else environment
    found = _by_torchrun(environment) or _by_srun(environment)
    return found if found is not None and found.size > 1 else Launch()


def _by_torchrun(environment: Mapping[str, str]) -> Launch | None:
    rank, size = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None or size is None:
        return None
    local = _number(environment, "LOCAL_RANK") or 0, _number(environment, "LOCAL_WORLD_SIZE") or 1
    return Launch(rank, size, *local, "torchrun", "env://", _number(environment, "SLURM_GPUS_ON_NODE") or 0)


def _by_srun(environment: Mapping[str, str]) -> Launch | None:
    rank, size = (_number(environment, name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
    if rank is None or size is None:
        return None
    counts = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    node = min(_number(environment, "SLURM_NODEID") or 0, len(counts) - 1)
    address = environment.get("MASTER_ADDR") or first_node(environment.get("SLURM_STEP_NODELIST", "localhost"))
    port = _number(environment, "MASTER_PORT") or _port(environment)
    return Launch(
        rank,
        size,
        _number(environment, "SLURM_LOCALID") or 0,
        counts[node],
        "srun",
        f"tcp://{address}:{port}?rank={rank}&world_size={size}",
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
    """A port that two steps, or two jobs that follow each other on one machine, do not share."""
    job, step = (_number(environment, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (10 * job + step) % PORTS


def _number(environment: Mapping[str, str], name: str) -> int | None:
    said = environment.get(name, "")
    return int(said) if said.isdigit() else None
