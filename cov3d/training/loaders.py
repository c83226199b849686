"""Batches of cached scans, read ahead by threads.

Reading a cached scan is reading a file and hashing it, which threads do side by side. So there are no processes that could die,
hear a signal that is not theirs, or want shared memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from cov3d.config import Machine, Training
from cov3d.scans.cache import Cache
from cov3d.scans.study import Row
from cov3d.training.order import Order, Place
from cov3d.training.ranks import ALONE, Ranks
from cov3d.training.split import Split

MOST_THREADS = 8


class CachedScans:
    """Rows of a study as tensors: scan uint8 ``(1, D, H, W)``, labels ``(2,)`` = presence, severity, and weight.

    With a cache of masks, also the mask uint8 ``(1, D, H, W)``.
    """

    def __init__(self, cache: Cache, rows: Sequence[Row], masks: Cache | None = None):
        self.cache, self.rows, self.masks = cache, rows, masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> tuple[Tensor, ...]:
        row = self.rows[place.row]
        masks = [self.masks.load(row.scan)] if self.masks else []
        return self.cache.load(row.scan), torch.tensor([row.presence, row.severity]), torch.tensor(row.weight), *masks


class ReadAhead:
    """Batches of items in an order, the next ones read by threads meanwhile."""

    def __init__(self, item: Callable[[Place], tuple[Tensor, ...]], order: Order, threads: int, pin: bool):
        self.item, self.order, self.threads, self.pin = item, order, threads, pin

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        ahead: deque[list[Future]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="read")
        try:
            for batch in self.order:
                ahead.append([pool.submit(self.item, place) for place in batch])
                if len(ahead) > 1 + self.threads // len(batch):
                    yield self._batch(ahead.popleft())
            while ahead:
                yield self._batch(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, items: Sequence[Future]) -> Any:
        batch = default_collate([item.result() for item in items])
        return [tensor.pin_memory() for tensor in batch] if self.pin else batch


@dataclass(frozen=True)
class Loaders:
    """What a fastai Learner asks of its data, and in which order it is seen."""

    train: Any  # what has a length, and gives batches
    valid: Any
    device: torch.device
    orders: tuple[Order, Order]  # of both
    rows: tuple[Sequence[str], Sequence[str]]  # their names
    n_inp: int = 1  # of a batch's tensors the first is the input

    def __getitem__(self, index: int) -> Any:
        return (self.train, self.valid)[index]

    @property
    def order(self) -> Order:
        """Of the training rows."""
        return self.orders[0]

    def names(self, training: bool, batch: int) -> list[str]:
        """The rows of a batch, by name."""
        part = 0 if training else 1
        return [self.rows[part][row] for row in self.orders[part].whole(batch)]


def loaders(
    caches: tuple[Cache, Cache],
    split: Split,
    settings: Training,
    machine: Machine,
    device: torch.device,
    masks: tuple[Cache | None, Cache | None] = (None, None),
    ranks: Ranks = ALONE,
) -> Loaders:
    """Training batches in an order drawn from the seed; validation in order."""
    gpu = device.type == "cuda"
    threads = min(machine.processes, MOST_THREADS) if gpu else 1  # a network on a CPU has the cores
    parts = (split.train, split.validation)
    train, valid = (
        Order(len(rows), settings.batch_size, settings.seed, shuffled, ranks)
        for rows, shuffled in zip(parts, (True, False), strict=True)
    )
    items = [CachedScans(*each) for each in zip(caches, parts, masks, strict=True)]
    return Loaders(
        ReadAhead(items[0].__getitem__, train, threads, gpu),
        ReadAhead(items[1].__getitem__, valid, threads, gpu),
        device,
        (train, valid),
        ([row.scan for row in split.train], [row.scan for row in split.validation]),
    )
