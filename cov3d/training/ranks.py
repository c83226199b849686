"""Several processes that train one network: ``torchrun --nproc-per-node 8 -m cov3d train …``, or ``srun`` with 8 tasks.

Each computes the gradients of its share of every batch; their sum, weighted by the shares, is the gradient of the whole batch.
So a run of two processes with batches of 2 takes the steps of one process with batches of 4. What else they tell each other
is small, and goes over gloo even between GPUs: its connections break when a process dies, so that nobody waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cov3d.console import few, mute, say
from cov3d.errors import Cov3dError, SettingError
from cov3d.launch import ALONE_IN_SLURM, Launch, find_launch

LONGEST = timedelta(days=7)  # that the others wait while one makes a cache
LONGEST_STEP = timedelta(minutes=30)  # that one waits for the others in a step
TO_MEET = timedelta(minutes=10)  # since the first has come
GONE = (
    "another process of this training has ended, so this one does, too; its own message says why; run the same command "
    "with --resume to go on after what was saved last"
)
SAME_COMMAND = f"give all of them the same command, or let each train by itself (in Slurm: {ALONE_IN_SLURM})"
SAME_ROWS = "see that all machines read the same files, whole, and that nobody changes them meanwhile"


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this is. One alone, without any of torch's means, if nothing is said."""

    rank: int = 0
    size: int = 1
    gradients: Any = None  # the group that gradients go over, if not the default one

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def any(self, *flags: bool) -> list[bool]:
        """Whether any process says so, for each flag."""
        return [number > 0 for number in self.sum(*map(float, flags))]

    def sum(self, *numbers: float) -> list[float]:
        """The sum over processes of each number."""
        if self.alone:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)
        self._sum(told)
        return told.tolist()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor the sum over processes, all of them in one message for each type of number."""
        if self.alone:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            self._sum(flat, self.gradients)
            for tensor, summed in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def gather(self, content: Any) -> list[Any]:
        """What each process has to say, in JSON, by rank."""
        if self.alone:
            return [content]
        data = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
        return [json.loads(part.numpy().tobytes()) for part in self.gather_rows(data)]

    def agree(self, advice: str = SAME_COMMAND, **asked: Any) -> None:
        """Go on only if all processes were asked for the same.

        Raises:
            SettingError: they were not.
        """
        told = [dict(leaves) for leaves in self.gather(list(_leaves(asked)))]
        names = dict.fromkeys(name for leaves in told for name in leaves)
        differing = [name for name in names if any(leaves.get(name) != told[0].get(name) for leaves in told)]
        if differing:
            named = few([name.rpartition(".")[2].replace("_", "-") for name in differing])
            raise SettingError(f"{self.size} processes that train together differ in {named}; {advice}")

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """The tensors ``(n, …)`` of all processes, by rank; they differ in n only."""
        if self.alone:
            return [rows]
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _others():
            dist.all_gather(counts, torch.tensor([len(rows)]))
            longest = int(max(counts))
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]

    def gather_shares(self, rows: Tensor) -> Tensor:
        """Rows ``(N, …)`` in their order, of which each process has every ``size``-th."""
        parts = self.gather_rows(rows)
        whole = rows.new_zeros(sum(map(len, parts)), *rows.shape[1:])
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)

    def _sum(self, tensor: Tensor, group: Any = None) -> None:
        with _others():
            dist.all_reduce(tensor, group=group)


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun or srun has started together, if one has; all but the first are quiet.

    Raises:
        Cov3dError: the others are not there.
    """
    launch = find_launch()
    if launch.size == 1:
        yield ALONE
        return
    if launch.rank > 0:
        mute()
    alone = f"; one alone: {ALONE_IN_SLURM}" if launch.found_in == "srun" else ""
    say(f"{launch.size} processes of {launch.found_in} train together, once all are there{alone}")
    _meet(launch)
    try:
        with _others():
            gradients = dist.new_group(backend="nccl", timeout=LONGEST_STEP) if device.type == "cuda" else None
        yield Ranks(launch.rank, launch.size, gradients)
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _meet(launch: Launch) -> None:
    """Connect the processes.

    Raises:
        Cov3dError: the others do not come.
    """
    where = "env://"
    if launch.address:
        where = f"tcp://{launch.address}:{launch.port}?rank={launch.rank}&world_size={launch.size}"
    try:
        store, rank, size = next(dist.rendezvous(where, timeout=TO_MEET))
        store.set_timeout(LONGEST_STEP)
        store = dist.PrefixStore("default_pg", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST)
    except (ValueError, RuntimeError) as error:
        raise Cov3dError(_unmet(launch)) from error


def _unmet(launch: Launch) -> str:
    if not launch.address:
        return (
            f"the {launch.size} processes of torchrun do not find each other; start them by torchrun -m cov3d, each with the "
            "same command, and see that the machines reach each other"
        )
    return (
        f"the {launch.size} processes of srun do not meet at {launch.address}, port {launch.port}; see that all of them run, "
        "that the machines reach each other, and that nobody else has that port (MASTER_ADDR and MASTER_PORT say another place); "
        f"one alone: {ALONE_IN_SLURM}"
    )


def _leaves(asked: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, str]]:
    """Settings of groups in groups, as ``group.name`` and value in JSON, in which one NaN is as good as another."""
    for name, value in asked.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", json.dumps(value)


@contextmanager
def _others() -> Iterator[None]:
    """A broken connection as a sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise Cov3dError(GONE) from error
