"""Batches of cached scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cov3d.config import Machine, Training
from cov3d.scans.cache import Cache
from cov3d.scans.study import Row
from cov3d.training.split import Split


class CachedScans(Dataset):
    """Rows of a study as tensors: scan uint8 ``(1, D, H, W)``, labels ``(2,)`` = presence, severity, and weight.

    With a cache of masks, also the mask uint8 ``(1, D, H, W)``.
    """

    def __init__(self, cache: Cache, rows: Sequence[Row], masks: Cache | None = None):
        self.cache = cache
        self.rows = rows
        self.masks = masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = self.rows[index]
        masks = [self.masks.load(row.scan)] if self.masks else []
        return self.cache.load(row.scan), torch.tensor([row.presence, row.severity]), torch.tensor(row.weight), *masks


@dataclass(frozen=True)
class Loaders:
    """What a fastai Learner asks of its data."""

    train: DataLoader
    valid: DataLoader
    device: torch.device
    order: torch.Generator  # of the training scans
    n_inp: int = 1  # of a batch's tensors the first is the input

    def __getitem__(self, index: int) -> DataLoader:
        return (self.train, self.valid)[index]


def loaders(
    caches: tuple[Cache, Cache],
    split: Split,
    settings: Training,
    machine: Machine,
    device: torch.device,
    masks: tuple[Cache | None, Cache | None] = (None, None),
) -> Loaders:
    """Training batches in an order drawn from the seed, an incomplete last one dropped as fastai does; validation in order."""
    gpu = device.type == "cuda"
    common: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "num_workers": min(machine.processes, 8) if gpu else 0,  # beside a CPU network reading ahead gains nothing
        "pin_memory": gpu,
        "persistent_workers": gpu,
    }
    order = torch.Generator().manual_seed(settings.seed)
    return Loaders(
        DataLoader(
            CachedScans(caches[0], split.train, masks[0]),
            shuffle=True,
            generator=order,
            drop_last=len(split.train) > settings.batch_size,
            **common,
        ),
        DataLoader(CachedScans(caches[1], split.validation, masks[1]), **common),
        device,
        order,
    )
