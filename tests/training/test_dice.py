"""What a wrong mask costs and how overlaps are counted: by hand, and against the equations."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cov3d.scans.study import Row
from cov3d.training.augment import move_masks
from cov3d.training.dice import BothJudge, LesionLoss, MaskJudge, MaskLoss, overlap, soft_dice
from cov3d.training.draws import Draw
from cov3d.training.judge import ClassJudge
from cov3d.training.spatial import Placement


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def rows(count: int, severities: tuple[int, ...] = ()) -> list[Row]:
    known = severities or (1,) * count
    return [Row(f"s{k}", Path(f"s{k}"), 1, known[k]) for k in range(count)]


def test_soft_dice_is_worked_by_hand():
    probability = torch.tensor([[0.5, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 1, 2, 2)
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 1, 2, 2)
    # 1 − (2·1.5 + 1) / (1.5 + 2 + 1), and an empty mask rightly left empty costs nothing
    torch.testing.assert_close(soft_dice(probability, mask), torch.tensor([1 - 4 / 4.5, 0.0]))


def test_the_loss_of_a_mask_is_soft_dice_and_cross_entropy_of_each_scan():
    logits = volume(3, 1, 4, 5, 6) * 6 - 3
    mask = (volume(3, 1, 4, 5, 6, seed=1) > 0.7).float()
    p, t = logits.double().sigmoid().numpy(), mask.double().numpy()
    dice = [1 - (2 * (p[k] * t[k]).sum() + 1) / ((p[k] + t[k]).sum() + 1) for k in range(3)]
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert MaskLoss()(logits, mask).item() == pytest.approx(np.mean(dice) + entropy, rel=1e-5)


def test_of_both_tasks_the_loss_is_their_weighted_sum():
    class Three(torch.nn.Module):
        def forward(self, logits, labels, weight):
            return torch.tensor(3.0)

    logits, mask = volume(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)
    alone = MaskLoss()(logits, mask).item()
    labels, weight = torch.ones(2, 2), torch.ones(2)
    both = LesionLoss(Three(), (2.0, 0.5))((torch.zeros(2, 6), logits), labels, weight, mask)
    assert both.item() == pytest.approx(2 * 3 + 0.5 * alone)
    assert LesionLoss()((None, logits), labels, weight, mask).item() == pytest.approx(alone)


def test_dice_and_iou_are_those_of_all_voxels_of_the_set_together():
    judge = MaskJudge(rows(3))
    true = (volume(3, 1, 4, 4, 4) > 0.6).float()
    logits = volume(3, 1, 4, 4, 4, seed=1) - 0.5
    for part in (slice(0, 2), slice(2, 3)):
        judge.see((None, logits[part]), (torch.empty(0), torch.empty(0), true[part]))
    called, wanted = (logits > 0).numpy().ravel(), true.bool().numpy().ravel()
    found = judge.scores()["masks"]
    assert found["dice"] == pytest.approx(2 * (called & wanted).sum() / (called.sum() + wanted.sum()))
    assert found["iou"] == pytest.approx((called & wanted).sum() / (called | wanted).sum())
    judge.begin()
    assert judge.scores()["masks"]["dice"] is None


def test_nothing_called_and_nothing_true_has_no_overlap():
    assert overlap(0, 0, 0) == {"dice": None, "iou": None}
    assert overlap(0, 3, 0) == {"dice": 0.0, "iou": 0.0}


def test_the_overlap_of_each_scan_is_written(tmp_path: Path):
    judge = MaskJudge(rows(2))
    mask = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]]).view(2, 1, 1, 2, 2)
    judge.see((None, torch.tensor([[1.0, -1, 1, -1], [-1, -1, -1, -1]]).view(2, 1, 1, 2, 2)), (None, None, mask))
    judge.write(tmp_path, {"masks": judge.evidence()})
    with (tmp_path / "overlaps.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["scan"], line["true_voxels"], line["dice"]) for line in lines] == [
        ("s0", "2", "0.5"),
        ("s1", "0", ""),
    ]


def test_of_both_tasks_the_best_epoch_is_that_of_the_highest_auc():
    known = (1, 4, 1, 4)
    judge = BothJudge(ClassJudge(rows(4, known), "severity", {}), MaskJudge(rows(4, known)))
    ranks = []
    for slope in (1.0, -1.0):
        judge.begin()
        logits = torch.zeros(4, 6)
        logits[:, 4] = slope * torch.tensor([-2.0, 1.0, -1.0, 2.0])
        judge.see((logits, torch.zeros(4, 1, 2, 2, 2)), (None, None, torch.zeros(4, 1, 2, 2, 2)))
        scores = judge.scores()
        ranks.append(judge.rank("severity", scores))
        assert scores["severity"]["auc"] == (1.0 if slope > 0 else 0.0)
    assert ranks[0] > ranks[1]


# Masks are moved as their scans are


def test_a_mask_is_moved_as_its_scan_is():
    scan = (volume(1, 1, 8, 12, 12) > 0.5).to(torch.uint8) * 255
    placement = Placement(flips=(True, False, True), turns=(0, 1, 0))
    moved = move_masks(scan, [Draw(placement, sigma=0.7, deviation=0.5)], (8, 12, 12))
    expected = scan[0, 0].flip([0, 2]).rot90(1, (1, 2)).float() / 255
    assert torch.equal(moved[0, 0], expected)  # neither blurred nor noisy


def test_a_hard_mask_stays_hard_and_a_soft_one_soft():
    hard = (F.avg_pool3d(volume(1, 1, 8, 16, 16), 3, 1, 1) > 0.5).to(torch.uint8) * 255
    soft = (F.avg_pool3d(volume(1, 1, 8, 16, 16), 3, 1, 1) * 255).to(torch.uint8)
    moved = move_masks(torch.cat([hard, soft]), [Draw(Placement(degrees=20.0))] * 2, (8, 16, 16))
    assert set(moved[0].unique().tolist()) == {0.0, 1.0}
    assert len(moved[1].unique()) > 100
