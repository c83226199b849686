"""Lesion masks: what a wrong one costs, and how well they overlap with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cov3d.runs import OVERLAPS
from cov3d.scans.study import Row
from cov3d.tables import write_table
from cov3d.training.judge import Judge, Rank
from cov3d.training.ranks import Ranks
from cov3d.training.scorer import Measure, Scores

SMOOTHING = 1.0  # voxels, so that two empty masks overlap wholly


class MaskLoss(nn.Module):
    """Soft Dice and binary cross entropy of mask logits ``(B, 1, D, H, W)``, as Kienzle et al. (arXiv 2206.15073) add them."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``mask`` holds probabilities, for true masks 0 and 1."""
        logits = logits.float()
        return soft_dice(logits.sigmoid(), mask).mean() + F.binary_cross_entropy_with_logits(logits, mask)


def soft_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """1 − (2·Σpt + 1) / (Σp + Σt + 1) of each scan ``(B,)`` (Milletari et al., arXiv 1606.04797, without squares)."""
    shared, sizes = ((values).flatten(1).sum(1) for values in (probability * mask, probability + mask))
    return 1 - (2 * shared + SMOOTHING) / (sizes + SMOOTHING)


class LesionLoss(nn.Module):
    """The loss of a network that draws masks and, where ``classes`` is given, answers too: a weighted sum of both."""

    def __init__(self, classes: nn.Module | None = None, weights: Sequence[float] = (1.0, 1.0)):
        super().__init__()
        self.classes, self.masks, self.weights = classes, MaskLoss(), tuple(weights)

    def forward(self, answers: tuple[Tensor | None, Tensor], labels: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """``answers`` are a :class:`cov3d.nets.upernet.Segmenter`'s; the others come from the loader."""
        logits, drawn = answers
        loss = self.masks(drawn, mask)
        if self.classes is None:
            return loss
        return self.weights[0] * self.classes(logits, labels, weight) + self.weights[1] * loss

    def activation(self, answers: tuple[Tensor | None, Tensor]) -> Tensor:
        """Probabilities of lesion ``(B, 1, D, H, W)``."""
        return answers[1].sigmoid()

    def decodes(self, activated: Tensor) -> Tensor:
        """Masks of 0 and 1."""
        return (activated >= 0.5).float()


class MaskJudge(Judge):
    """Dice and IoU over the set: of all lesion voxels together, a voxel being called at p > .5.

    An epoch is better by Dice, and among equals, as in the first ones, by the mean soft Dice.
    """

    measures = {"masks": Measure("Dice", "dice", "masks_dice")}  # noqa: RUF012
    kept_for = ("masks",)
    noted_of_none = (torch.empty(0, 3, dtype=torch.long), torch.empty(0))

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows
        self.begin()

    def noted(self, answers: Any, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        called, true = answers[1] > 0, batch[2] >= 0.5
        counts = [voxels.flatten(1).sum(1) for voxels in (called & true, called, true)]
        return torch.stack(counts, 1), 1 - soft_dice(answers[1].float().sigmoid(), batch[2])

    def evidence(self) -> Tensor:
        """Voxels ``(N, 3)`` of each scan: rightly called, called, true."""
        return self.seen()[0]

    def scores(self) -> Scores:
        found, soft = self.seen()
        right, called, true = found.sum(0).tolist()
        mean = float(soft.mean()) if len(soft) else None
        return {"masks": {"n": len(found), **overlap(right, called, true), "soft_dice": mean}}

    def columns(self, scores: Scores) -> dict[str, Any]:
        return {"masks_dice": scores["masks"]["dice"], "masks_iou": scores["masks"]["iou"]}

    def rank(self, kept: str, scores: Scores) -> Rank:
        found = scores["masks"]
        return (-1.0, 0.0) if found["soft_dice"] is None else (found["dice"] or 0.0, found["soft_dice"])

    def write(self, folder: Path, evidence: dict[str, Tensor]) -> None:
        """Write ``overlaps.csv``: Dice and IoU of each scan."""
        if "masks" not in evidence:
            return
        lines = [
            {"scan": row.scan, "true_voxels": true, "called_voxels": called, **overlap(right, called, true)}
            for row, (right, called, true) in zip(self.rows, evidence["masks"].tolist(), strict=True)
        ]
        write_table(folder / OVERLAPS, ("scan", "true_voxels", "called_voxels", "dice", "iou"), lines)


def overlap(right: int, called: int, true: int) -> dict[str, float | None]:
    """Dice and IoU from counts of voxels; None where nothing is called and nothing true."""
    either = called + true
    return {"dice": 2 * right / either if either else None, "iou": right / (either - right) if either else None}


class BothJudge(Judge):
    """Severity and masks together; the best epoch is that of the highest AUC of severity."""

    kept_for = ("severity",)

    def __init__(self, classes: Judge, masks: MaskJudge):
        self.classes, self.masks = classes, masks
        self.measures = {"severity": Measure("AUC", "auc", "severity_auc"), **masks.measures}

    def begin(self) -> None:
        self.classes.begin()
        self.masks.begin()

    def see(self, answers: Any, batch: Sequence[Tensor]) -> None:
        self.classes.see(answers[0], batch)
        self.masks.see(answers, batch)

    def noted(self, answers: Any, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*self.classes.noted(answers[0], batch), *self.masks.noted(answers, batch))

    def gather(self, ranks: Ranks) -> None:
        self.classes.gather(ranks)
        self.masks.gather(ranks)

    def evidence(self) -> tuple[Any, Tensor]:
        """Of both."""
        return self.classes.evidence(), self.masks.evidence()

    def scores(self) -> Scores:
        masks = self.masks.scores()
        return {"severity": {**self.classes.scores()["severity"], **masks}, **masks}

    def columns(self, scores: Scores) -> dict[str, Any]:
        severity = scores["severity"]
        return {"severity_auc": severity.get("auc"), "severity_f1": severity["macro_f1"], **self.masks.columns(scores)}

    def rank(self, kept: str, scores: Scores) -> Rank:
        auc = scores["severity"].get("auc")
        return (-1.0, 0.0) if auc is None else (auc, -scores["severity"]["log_loss"])

    def write(self, folder: Path, evidence: dict[str, tuple[Any, Tensor]]) -> None:
        """Write what each writes of the one epoch that is kept for both."""
        answers, masks = evidence["severity"]
        self.classes.write(folder, {"severity": answers})
        self.masks.write(folder, {"masks": masks})
