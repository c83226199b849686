"""Reflection: half of the training scans, none in validation."""

from __future__ import annotations

import torch

from cov3d.training.augment import PrepareInput


class FakeLearner:
    def __init__(self, scans: torch.Tensor, training: bool):
        self.xb, self.training = (scans,), training


def prepared(training: bool, reflection: bool = True, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    scans = torch.randint(0, 256, (64, 1, 2, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    callback = PrepareInput(reflection, seed)
    callback.learn = FakeLearner(scans, training)
    callback.before_batch()
    return scans, callback.learn.xb[0]


def test_about_half_of_the_training_scans_are_mirrored_and_nothing_else_changes():
    scans, seen = prepared(training=True)
    plain = (seen == scans / 255).flatten(1).all(1)
    mirrored = (seen == scans.flip(-1) / 255).flatten(1).all(1)
    assert (plain ^ mirrored).all()
    assert 20 <= mirrored.sum() <= 44


def test_validation_scans_are_never_mirrored():
    scans, seen = prepared(training=False)
    assert torch.equal(seen, scans / 255)


def test_reflection_can_be_left_out():
    scans, seen = prepared(training=True, reflection=False)
    assert torch.equal(seen, scans / 255)


def test_the_seed_decides_which():
    assert torch.equal(prepared(True, seed=3)[1], prepared(True, seed=3)[1])
    assert not torch.equal(prepared(True, seed=3)[1], prepared(True, seed=4)[1])
