"""In which order rows are trained on: drawn anew each epoch, by seed and epoch alone, so that a run can begin within one.

Every row is seen once an epoch. The same holds of several processes: they share each batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from cov3d.training.ranks import ALONE, Ranks


class Place(NamedTuple):
    """A row's number, and the epoch in which it is seen: all that what is drawn for it depends on, beside the seed."""

    epoch: int
    row: int


def generator_of(seed: int, *place: int) -> torch.Generator:
    """A generator for one place of a run."""
    words = np.random.SeedSequence((seed, *place)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


class Order:
    """The batches of an epoch, as lists of places; those of validation, not ``shuffled``, are the same in each.

    ``batch_size`` is each process's. ``epoch`` and ``first``, the batch to begin with, are set from outside.
    """

    def __init__(self, count: int, batch_size: int, seed: int = 0, shuffled: bool = True, ranks: Ranks = ALONE):
        self.count, self.batch_size, self.seed, self.shuffled, self.ranks = count, batch_size, seed, shuffled, ranks
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.ranks.size))

    def __iter__(self) -> Iterator[list[Place]]:
        """From ``first`` on; the next time from the beginning."""
        first, self.first = self.first, 0
        for batch in range(first, len(self)):
            if places := self.places(batch):
                yield places

    def places(self, batch: int) -> list[Place]:
        """What this process computes of a batch: its share, or in training, where that is empty, one row for company."""
        rows = self.share(batch) or (self.whole(batch)[:1] if self.shuffled else [])
        return [Place(self.epoch, row) for row in rows]

    def whole(self, batch: int) -> list[int]:
        """The rows of a batch, of all processes together."""
        begin, end = self._bounds(batch)
        return self._rows()[begin:end]

    def share(self, batch: int) -> list[int]:
        """Those of this process that count; in the last batch there may be none."""
        return self.whole(batch)[self.ranks.rank :: self.ranks.size]

    def _bounds(self, batch: int) -> tuple[int, int]:
        """The last two batches of training share what is left for them, so that none is of one row if it need not be."""
        size = self.batch_size * self.ranks.size
        left, last = self.count % size, len(self) - 1
        bounds = [batch * size, min((batch + 1) * size, self.count)]
        if self.shuffled and left and batch >= last - 1 >= 0:
            bounds[last - batch] = (last - 1) * size + (size + left + 1) // 2
        return bounds[0], bounds[1]

    def _rows(self) -> list[int]:
        if not self.shuffled:
            return list(range(self.count))
        return torch.randperm(self.count, generator=generator_of(self.seed, self.epoch)).tolist()
