"""Honesty: labels that say nothing can be learnt by heart, and not told of scans that nobody saw."""

from __future__ import annotations

from pathlib import Path

from cov3d import (
    Augmentation,
    Machine,
    NetSettings,
    Preprocessing,
    RunSettings,
    Training,
    evaluate,
    infer,
    read_study,
    train,
)
from cov3d.phantom import write_study

ONE = Machine(workers=1, device="cpu")


def test_random_labels_are_learnt_by_heart_and_by_chance_elsewhere(tmp_path: Path):
    study = read_study(write_study(tmp_path / "study", scans=40, size=48, labels="random", validation=0.5, seed=2))
    settings = RunSettings(
        task="presence",
        preprocessing=Preprocessing(width=32),
        net=NetSettings(base_width=8, dropout=0.0, penultimate=16),
        training=Training(epochs=30, batch_size=4, learning_rate=3e-3, validation_fraction=0.2),
        augmentation=Augmentation(flip_width=0.0),
    )
    model = train(study, settings, ONE, tmp_path / "cache", tmp_path / "run").folder / "last.safetensors"
    scores = {}
    for split in ("train", "validation"):
        table = tmp_path / f"{split}.csv"
        infer([tmp_path / "study" / split], [model], table, machine=ONE)
        scores[split] = evaluate(table, study)["presence"]
    assert scores["train"]["macro_f1"] > 0.7  # a fifth of these was held out, and cannot be known by heart
    low, high = scores["validation"]["interval"]
    assert low <= scores["validation"]["chance"] <= high
