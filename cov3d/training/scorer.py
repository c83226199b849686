"""What is noted of a validation set's batches, and scored when all of them, of all processes, have been seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cov3d.training.ranks import Ranks

Scores = dict[str, dict[str, Any]]  # by what is scored


class Measure(NamedTuple):
    """A number that people look at: its name, its key in the scores, its column in the history."""

    name: str
    key: str
    column: str


class Scorer(ABC):
    """Sees the batches of a validation set, and scores what it has seen.

    ``measures`` are the numbers that people look at, by what is scored.
    """

    measures: dict[str, Measure]
    noted_of_none: tuple[Tensor, ...]  # what is noted of no rows: empty columns

    def begin(self) -> None:
        """Forget what was seen: an epoch begins."""
        self.batches: list[tuple[Tensor, ...]] = []

    def see(self, answers: Any, batch: Sequence[Tensor]) -> None:
        """Take in a batch: the network's answers, and labels as the loader gives them."""
        self.batches.append(tuple(column.detach().cpu() for column in self.noted(answers, batch)))

    @abstractmethod
    def noted(self, answers: Any, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What is noted of a batch: columns ``(B, ...)``."""

    def seen(self) -> tuple[Tensor, ...]:
        """What was noted so far: columns ``(N, ...)``."""
        if not self.batches:
            return self.noted_of_none
        return tuple(torch.cat(column) for column in zip(*self.batches, strict=True))

    def gather(self, ranks: Ranks) -> None:
        """Know what every process has seen, in the order of the rows."""
        self.batches = [tuple(ranks.gather_shares(column) for column in self.seen())]

    @abstractmethod
    def scores(self) -> Scores:
        """Scores of all that was seen; a score that is not defined is None."""

    @abstractmethod
    def columns(self, scores: Scores) -> dict[str, Any]:
        """The same as columns of the history."""

    def number(self, scored: str, found: dict[str, Any]) -> float | None:
        """The number that people look at."""
        return found.get(self.measures[scored].key)
